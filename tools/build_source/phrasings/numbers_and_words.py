"""Phrasings about arithmetic, numerals, letters and words."""

from tools.build_source.model import Relation

ARITHMETIC = (
    Relation(
        name="sum",
        subject="arithmetic",
        questions=(
            "What is {left} plus {right}?",
            "How much is {left} plus {right}?",
            "What do you get if you add {left} and {right}?",
            "What is the sum of {left} and {right}?",
            "If you start at {left} and count {right} up, where do you land?",
        ),
        answers=("{left} plus {right} is {result}.",),
        per_fact=4,
    ),
    Relation(
        name="difference",
        subject="arithmetic",
        questions=(
            "What is {left} minus {right}?",
            "How much is {left} minus {right}?",
            "What is left if you take {right} away from {left}?",
            "What do you get if you subtract {right} from {left}?",
            "If you start at {left} and count {right} back, where do you land?",
        ),
        answers=("{left} minus {right} is {result}.",),
        per_fact=4,
    ),
    Relation(
        name="product",
        subject="arithmetic",
        questions=(
            "What is {left} times {right}?",
            "How much is {left} times {right}?",
            "What do you get if you multiply {left} by {right}?",
            "What is the product of {left} and {right}?",
            "If {left} boxes hold {right} eggs each, how many eggs are there?",
        ),
        answers=("{left} times {right} is {result}.",),
        per_fact=4,
    ),
    Relation(
        name="parity",
        subject="arithmetic",
        questions=(
            "Is {number} even or odd?",
            "Is the number {number} odd or even?",
            "What is {number}, an even or an odd number?",
            "Would you call {number} even, or would you call it odd?",
            "Does {number} count as an even number or as an odd one?",
        ),
        answers=("{number} is {parity}.",),
        per_fact=4,
    ),
)

NUMERALS = (
    Relation(
        name="roman",
        subject="numerals",
        questions=(
            "What is {number} in Roman numerals?",
            "How is {number} written in Roman numerals?",
            "Which Roman numeral stands for {number}?",
            "How would you write {number} as a Roman numeral?",
            "What does {number} look like as a Roman numeral?",
        ),
        answers=("{number} in Roman numerals is {numeral}.",),
        per_fact=4,
    ),
    Relation(
        name="roman_reverse",
        subject="numerals",
        questions=(
            "What number is the Roman numeral {numeral}?",
            "Which number does the Roman numeral {numeral} stand for?",
            "What is the value of {numeral} in Roman numerals?",
            "If a Roman wrote {numeral}, what number was meant?",
            "How do you read the Roman numeral {numeral}?",
        ),
        answers=("The Roman numeral {numeral} stands for {number}.",),
        per_fact=4,
    ),
    Relation(
        name="number_words",
        subject="numerals",
        questions=(
            "How do you write {number} in words?",
            "How is the number {number} spelled?",
            "What is the word for {number}?",
            "What is {number} when written out in letters?",
            "Which word names the number {number}?",
        ),
        answers=("The number {number} is written {words}.",),
        per_fact=4,
    ),
    Relation(
        name="number_words_reverse",
        subject="numerals",
        questions=(
            "How do you write {words} in digits?",
            "Which number is called {words}?",
            "What number does the word {words} mean?",
            "What is {words} as a figure?",
            "If someone says {words}, which number do they mean?",
        ),
        answers=("{words} in digits is {number}.",),
        per_fact=4,
    ),
)

LETTERS = (
    Relation(
        name="letter_place",
        subject="letters",
        questions=(
            "What is the position of {letter} in the alphabet?",
            "Which letter of the alphabet is {letter}?",
            "Where in the alphabet does {letter} come?",
            "Counting from A, what place does {letter} have?",
            "In the order of the letters, which one is {letter}?",
        ),
        answers=("{letter} is the {place} letter of the alphabet.",),
        per_fact=4,
    ),
    Relation(
        name="letter_at_place",
        subject="letters",
        questions=(
            "What is the {place} letter of the alphabet?",
            "Which letter comes {place} in the alphabet?",
            "What letter do you find at the {place} place of the alphabet?",
            "Counting from A, which letter is the {place} one?",
            "Can you name the {place} letter in alphabetical order?",
        ),
        answers=("The {place} letter of the alphabet is {letter}.",),
        per_fact=4,
    ),
    Relation(
        name="letter_kind",
        subject="letters",
        questions=(
            "Is {letter} a vowel or a consonant?",
            "Is the letter {letter} a consonant or a vowel?",
            "What kind of letter is {letter}?",
            "Does {letter} count as a vowel, or as a consonant?",
            "To which kind of letters does {letter} belong, vowels or consonants?",
        ),
        answers=("The letter {letter} is a {kind}.",),
        per_fact=4,
    ),
    Relation(
        name="next_letter",
        subject="letters",
        questions=(
            "Which letter comes after {letter}?",
            "What letter follows {letter} in the alphabet?",
            "What is the next letter after {letter}?",
            "After you say {letter} in the alphabet, what do you say next?",
            "In alphabetical order, what comes right behind {letter}?",
        ),
        answers=("The letter after {letter} is {other}.",),
        per_fact=4,
    ),
    Relation(
        name="previous_letter",
        subject="letters",
        questions=(
            "Which letter comes before {letter}?",
            "What letter is followed by {letter} in the alphabet?",
            "What is the last letter before {letter}?",
            "Going back one step from {letter}, which letter do you reach?",
            "In alphabetical order, what comes right ahead of {letter}?",
        ),
        answers=("The letter before {letter} is {other}.",),
        per_fact=4,
    ),
    Relation(
        name="next_greek",
        subject="letters",
        questions=(
            "Which Greek letter comes after {letter}?",
            "In the Greek alphabet, what follows {letter}?",
            "What is the next Greek letter after {letter}?",
            "Which letter stands right behind {letter} in Greek?",
            "If you recite the Greek letters, what comes once you have said {letter}?",
        ),
        answers=("The Greek letter after {letter} is {other}.",),
        per_fact=4,
    ),
)

WORDS = (
    Relation(
        name="plural",
        subject="words",
        questions=(
            "What is the plural of {noun}?",
            "How do you write the plural of {noun}?",
            "What is the plural form of the word {noun}?",
            "Which word means more than one {noun}?",
            "If there are two of them, what does the word {noun} become?",
        ),
        answers=("The plural of {noun} is {plural}.",),
        per_fact=4,
    ),
)

NUMBERS_AND_WORDS = (*ARITHMETIC, *NUMERALS, *LETTERS, *WORDS)
