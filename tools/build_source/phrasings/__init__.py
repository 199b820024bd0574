"""How each relation is asked and answered; the sentences are this project's own.

The first question of a relation is the plainest one: it is what a reader would type
first, so every fact is given it and it always stays in the training part.
"""

from tools.build_source.model import Relation
from tools.build_source.phrasings.numbers_and_words import NUMBERS_AND_WORDS
from tools.build_source.phrasings.science import SCIENCE
from tools.build_source.phrasings.time_and_measure import TIME_AND_MEASURE
from tools.build_source.phrasings.world import WORLD

RELATIONS: dict[str, Relation] = {
    relation.name: relation for relation in (*WORLD, *SCIENCE, *TIME_AND_MEASURE, *NUMBERS_AND_WORDS)
}
