"""Phrasings about countries and cities."""

from tools.build_source.model import Relation

WORLD = (
    Relation(
        name="capital",
        subject="geography",
        questions=(
            "What is the capital of {country}?",
            "Which city is the capital of {country}?",
            "What is the name of the capital city of {country}?",
            "What city serves as the capital of {country}?",
            "Can you name the capital of {country}?",
            "Do you know which city is the capital of {country}?",
            "{country} has which city as its capital?",
            "What do we call the capital city of {country}?",
            "In {country}, which city is the capital?",
            "If you visit the capital of {country}, which city are you in?",
        ),
        answers=(
            "The capital of {country} is {capital}.",
            "{capital} is the capital of {country}.",
        ),
        per_fact=6,
    ),
    Relation(
        name="capital_reverse",
        subject="geography",
        questions=(
            "Which country has {capital} as its capital?",
            "{capital} is the capital of which country?",
            "Of which country is {capital} the capital?",
            "{capital} is the capital city of what country?",
            "What country has the capital city {capital}?",
            "Can you name the country whose capital is {capital}?",
            "If you are in {capital}, which country has its capital there?",
        ),
        answers=("{capital} is the capital of {country}.",),
        per_fact=4,
    ),
    Relation(
        name="continent",
        subject="geography",
        questions=(
            "On which continent is {country}?",
            "Which continent is {country} in?",
            "What continent does {country} belong to?",
            "{country} is part of which continent?",
            "Can you name the continent of {country}?",
            "To find {country} on a map, which continent do you look at?",
        ),
        answers=("{country} is in {continent}.",),
        per_fact=4,
    ),
    Relation(
        name="currency",
        subject="geography",
        questions=(
            "What is the currency of {country}?",
            "Which currency is used in {country}?",
            "What money do people use in {country}?",
            "Which currency does {country} have?",
            "What currency do you need for shopping in {country}?",
            "With which currency do people in {country} pay?",
        ),
        answers=("The currency of {country} is the {currency}.",),
        per_fact=4,
    ),
    Relation(
        name="language",
        subject="geography",
        questions=(
            "What is the official language of {country}?",
            "Which language is official in {country}?",
            "What official language does {country} have?",
            "Can you name the official language of {country}?",
            "{country} uses which official language?",
            "Which language has official status in {country}?",
        ),
        answers=("The official language of {country} is {language}.",),
        per_fact=4,
    ),
    Relation(
        name="city",
        subject="geography",
        questions=(
            "In which country is {city}?",
            "Which country is {city} in?",
            "{city} is a city in which country?",
            "To which country does the city of {city} belong?",
            "Where in the world is the city of {city}?",
            "Can you name the country where {city} lies?",
        ),
        answers=("{city} is a city in {country}.",),
        per_fact=5,
    ),
)
