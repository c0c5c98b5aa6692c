"""Small files in the formats of the three data sets."""

import json
from pathlib import Path


def hotpot(number: int, answer: str = "Paris") -> dict:
    """A record as HotpotQA and 2WikiMultihopQA have it."""
    return {
        "_id": f"id{number:04d}",
        "question": f"Where was the author of the book Number {number} born?",
        "answer": answer,
        "type": "bridge",
        "level": "easy",
        "supporting_facts": [[f"Writer {number}", 1], [f"Number {number}", 0]],
        "context": [
            [f"Writer {number}", ["A writer.", f" Writer {number} was born in {answer}."]],
            [f"Number {number}", [f"Number {number} is a book by Writer {number}."]],
            ["Paris", ["Paris is a town.", " It is large."]],
        ],
    }


def musique(number: int, **more) -> dict:
    """A record as MuSiQue has it; the second hop's passage is the second one of its title."""
    return {
        "id": f"2hop__{number}_{number + 1}",
        "question": f"When was the maker of Thing {number} founded?",
        "answer": "1901",
        "answer_aliases": ["the year 1901"],
        "answerable": True,
        "question_decomposition": [
            {
                "id": 1,
                "question": f"Thing {number} >> manufacturer",
                "answer": f"Maker {number}",
                "paragraph_support_idx": 2,
            },
            {
                "id": 2,
                "question": "When was #1 founded?",
                "answer": "1901",
                "paragraph_support_idx": 1,
            },
        ],
        "paragraphs": [
            {
                "idx": 0,
                "title": f"Maker {number}",
                "paragraph_text": f"Maker {number} makes things. Dr. A. Who runs it.",
                "is_supporting": False,
            },
            {
                "idx": 1,
                "title": f"Maker {number}",
                "paragraph_text": "It was founded in 1901. It is old.",
                "is_supporting": True,
            },
            {
                "idx": 2,
                "title": f"Thing {number}",
                "paragraph_text": f"Thing {number} is a thing made by Maker {number}.",
                "is_supporting": True,
            },
        ],
        **more,
    }


def write_array(path: Path, records: list) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path
