"""Phrasings about units and about the calendar."""

from tools.build_source.model import Relation

UNITS = (
    Relation(
        name="unit",
        subject="units",
        questions=(
            "How many {smalls} are in {large}?",
            "{large} is equal to how many {smalls}?",
            "How many {smalls} make {large}?",
            "What is {large} in {smalls}?",
            "What number of {smalls} equals {large}?",
            "If you change {large} into {smalls}, how many do you get?",
        ),
        answers=("There are {count} {smalls} in {large}.",),
        per_fact=4,
    ),
)

CALENDAR = (
    Relation(
        name="month_place",
        subject="calendar",
        questions=(
            "Which month of the year is {month}?",
            "What place does {month} have in the calendar?",
            "Counting from January, where does {month} come?",
            "What is the position of {month} among the months?",
            "In the order of the months, which one is {month}?",
        ),
        answers=("{month} is the {place} month of the year.",),
    ),
    Relation(
        name="month_at_place",
        subject="calendar",
        questions=(
            "What is the {place} month of the year?",
            "Which month is the {place} one?",
            "What is the name of the {place} month?",
            "Which month comes {place} in the calendar?",
            "Can you name the {place} month of a year?",
        ),
        answers=("The {place} month of the year is {month}.",),
    ),
    Relation(
        name="next_month",
        subject="calendar",
        questions=(
            "Which month comes after {month}?",
            "What month follows {month}?",
            "When {month} ends, which month begins?",
            "What is the next month after {month}?",
            "If it is {month} now, what will the next month be?",
        ),
        answers=("The month after {month} is {other}.",),
    ),
    Relation(
        name="previous_month",
        subject="calendar",
        questions=(
            "Which month comes before {month}?",
            "What month is followed by {month}?",
            "When {month} begins, which month has just ended?",
            "What is the last month before {month}?",
            "If it is {month} now, what was the month before?",
        ),
        answers=("The month before {month} is {other}.",),
    ),
    Relation(
        name="month_days",
        subject="calendar",
        questions=(
            "How many days does {month} have?",
            "How long is the month of {month}?",
            "What is the number of days in {month}?",
            "How many days are there in {month}?",
            "From its first day to its last, how many days does {month} last?",
        ),
        answers=("{month} has {days} days.",),
    ),
    Relation(
        name="next_day",
        subject="calendar",
        questions=(
            "Which day comes after {day}?",
            "What day follows {day}?",
            "If today is {day}, what day is tomorrow?",
            "What is the next day after {day}?",
            "When {day} is over, which day begins?",
        ),
        answers=("The day after {day} is {other}.",),
    ),
    Relation(
        name="previous_day",
        subject="calendar",
        questions=(
            "Which day comes before {day}?",
            "What day is followed by {day}?",
            "If today is {day}, what day was yesterday?",
            "What is the last day before {day}?",
            "When {day} begins, which day has just ended?",
        ),
        answers=("The day before {day} is {other}.",),
    ),
)

TIME_AND_MEASURE = (*UNITS, *CALENDAR)
