"""Filter profiles: profile -> rule -> threshold, in the order in which the rules are applied.

`min_words` rejects a document whose measure `words` (see corpus/measures.py) is below the threshold, `max_newlines` one
whose measure `newlines` is above it. `min_language` comes last: it alone is measured text by text.

Sources: FineWeb2's settings for arb_Arab (Penedo et al. 2025, arXiv 2506.20920, configs/arb_Arab.yml, Apache-2.0),
whose repetition rules are Gopher's (Rae et al. 2021, arXiv 2112.11446, table A1).
"""

from __future__ import annotations

from collections.abc import Mapping

_REPETITION = {
    "max_top_2gram": 0.197,
    "max_top_3gram": 0.172,
    "max_top_4gram": 0.146,
    "max_duplicate_5gram": 0.165,
    "max_duplicate_6gram": 0.153,
    "max_duplicate_7gram": 0.142,
    "max_duplicate_8gram": 0.131,
    "max_duplicate_9gram": 0.12,
    "max_duplicate_10gram": 0.109,
}

FILTER_PROFILES: dict[str, dict[str, float]] = {
    "none": {},
    # sentences, verses, titles: too short for shares to mean much; only what is not language is rejected
    "short": {"min_average_word": 1.5, "max_average_word": 15, "min_alphabetic": 0.5},
    # books and news: lines are wrapped as on a page, and need not end in punctuation
    "prose": {
        "min_words": 20,
        "max_words": 1_000_000,
        "min_average_word": 2,
        "max_average_word": 9,
        "min_alphabetic": 0.7,
        "min_stop_words": 2,
        **_REPETITION,
        "min_language": 0.5,
    },
    "web": {
        "min_words": 50,
        "max_words": 100_000,
        "min_average_word": 2,
        "max_average_word": 9,
        "min_alphabetic": 0.787,
        "min_stop_words": 2,
        "min_line_punctuation": 0.143,
        "max_newlines": 0.189,
        "max_duplicate_lines": 0.304,
        "max_duplicate_line_chars": 0.1,
        **_REPETITION,
        "min_language": 0.5,  # of py3langid; FineWeb2's 0.711 is GlotLID's
    },
}


def rules_of(profiles: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """Every rule of some profiles once, in the order of the profiles, the longest first.

    So an order that all profiles share is kept.
    """
    longest_first = sorted(profiles.values(), key=len, reverse=True)
    return tuple(dict.fromkeys(rule for profile in longest_first for rule in profile))


RULES = rules_of(FILTER_PROFILES)
"""Every rule of any profile, in the order in which they are applied."""
