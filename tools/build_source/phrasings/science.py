"""Phrasings about the elements and about the sky."""

from tools.build_source.model import Relation

CHEMISTRY = (
    Relation(
        name="symbol",
        subject="chemistry",
        questions=(
            "What is the chemical symbol of {element}?",
            "What is the symbol for {element}?",
            "Which symbol stands for {element}?",
            "What symbol do chemists use for {element}?",
            "How is {element} written as a chemical symbol?",
            "How do you abbreviate {element} in chemistry?",
            "Under which symbol is {element} listed in the periodic table?",
            "Can you give the chemical symbol of {element}?",
            "In a chemical formula, which symbol means {element}?",
        ),
        answers=("The chemical symbol of {element} is {symbol}.",),
        per_fact=6,
    ),
    Relation(
        name="symbol_reverse",
        subject="chemistry",
        questions=(
            "Which element has the symbol {symbol}?",
            "What element does the symbol {symbol} stand for?",
            "{symbol} is the chemical symbol of which element?",
            "What is the name of the element with the symbol {symbol}?",
            "In chemistry, what does {symbol} mean?",
            "Which element is written as {symbol} in a formula?",
        ),
        answers=("{symbol} is the chemical symbol of {element}.",),
        per_fact=4,
    ),
    Relation(
        name="atomic_number",
        subject="chemistry",
        questions=(
            "What is the atomic number of {element}?",
            "Which atomic number does {element} have?",
            "Which number in the periodic table belongs to {element}?",
            "What number does {element} have in the periodic table?",
            "Can you give the atomic number of {element}?",
            "At which number do you find {element} in the periodic table?",
        ),
        answers=("The atomic number of {element} is {number}.",),
        per_fact=5,
    ),
    Relation(
        name="family",
        subject="chemistry",
        questions=(
            "What kind of element is {element}?",
            "To which family of elements does {element} belong?",
            "What type of element do chemists call {element}?",
            "How is {element} classed in the periodic table?",
            "Which group of similar elements includes {element}?",
            "In chemistry, what sort of element is {element}?",
        ),
        answers=("{element} is {family}.",),
        per_fact=4,
    ),
)

ASTRONOMY = (
    Relation(
        name="planet_place",
        subject="astronomy",
        questions=(
            "What is the position of {planet} in the solar system?",
            "Counted from the Sun, what place does {planet} have among the planets?",
            "Counting outward from the Sun, where does {planet} come?",
            "Which planet, counted from the Sun, is {planet}?",
            "In the order of the planets, which one is {planet}?",
        ),
        answers=("{planet} is the {place} planet from the Sun.",),
    ),
    Relation(
        name="planet_at_place",
        subject="astronomy",
        questions=(
            "What is the {place} planet from the Sun?",
            "Which planet is the {place} one from the Sun?",
            "Counting from the Sun, what is the {place} planet called?",
            "What is the name of the {place} planet in the solar system?",
            "Which planet comes {place} in the solar system?",
            "Can you name the {place} planet, starting at the Sun?",
        ),
        answers=("The {place} planet from the Sun is {planet}.",),
    ),
    Relation(
        name="next_planet",
        subject="astronomy",
        questions=(
            "Which planet comes after {planet}?",
            "Going away from the Sun, what planet follows {planet}?",
            "Moving outward from {planet}, which planet do you reach next?",
            "What is the next planet beyond {planet}?",
            "Which planet is the outer neighbor of {planet}?",
        ),
        answers=("The next planet after {planet} is {other}.",),
    ),
    Relation(
        name="previous_planet",
        subject="astronomy",
        questions=(
            "Which planet comes before {planet}?",
            "Going toward the Sun, what planet do you meet after {planet}?",
            "Moving inward from {planet}, which planet do you reach first?",
            "What planet lies just inside the orbit of {planet}?",
            "Which planet is the inner neighbor of {planet}?",
        ),
        answers=("The planet just before {planet} is {other}.",),
    ),
    Relation(
        name="moon",
        subject="astronomy",
        questions=(
            "Which planet does the moon {moon} orbit?",
            "{moon} is a moon of which planet?",
            "Around which planet does {moon} travel?",
            "To which planet does the moon {moon} belong?",
            "Which planet has a moon called {moon}?",
            "Which planet holds the moon {moon} in its orbit?",
        ),
        answers=("{moon} is a moon of {planet}.",),
        per_fact=5,
    ),
    Relation(
        name="star",
        subject="astronomy",
        questions=(
            "In which constellation is the star {star}?",
            "Which constellation does the star {star} belong to?",
            "{star} is a star in which constellation?",
            "What constellation contains {star}?",
            "To find the star {star}, which constellation do you look for?",
            "Can you name the constellation of the star {star}?",
        ),
        answers=("The star {star} is in the constellation {constellation}.",),
        per_fact=5,
    ),
)

SCIENCE = (*CHEMISTRY, *ASTRONOMY)
