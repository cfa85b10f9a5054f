"""A model's own path gives way to the name it was asked by, wherever the chunks are cut."""

import json
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trilithon.serve.model_names import ModelNames

PATH = Path("/srv/models/tiny ünd.gguf")


def chunks(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    return [content[start:end] for start, end in pairwise(edges)]


@given(
    st.lists(
        st.sampled_from(
            [
                f'{{"model":{json.dumps(str(PATH), ensure_ascii=False)},"x":1}}',
                f'{{"model": "{PATH.name}"}}\n',
                '{"model":"/srv/models/tiny',
                '"model":"another"',
                '"model"',
                '"',
                "data: text\n\n",
            ]
        )
    ),
    st.lists(st.integers(min_value=0, max_value=2000)),
)
def test_chunks_make_no_difference(parts: list[str], cuts: list[int]) -> None:
    content = "".join(parts).encode()
    renaming = ModelNames(PATH, 'as "asked"')
    found = b"".join(renaming.feed(chunk) for chunk in chunks(content, cuts)) + renaming.finish()
    assert found == ModelNames(PATH, 'as "asked"').whole(content)
    for own in (str(PATH), PATH.name):
        assert f'"model":{json.dumps(own, ensure_ascii=False)}'.encode() not in found


def test_the_name_is_put_in_and_nothing_else_is_touched() -> None:
    content = json.dumps({"model": str(PATH), "text": f'"model":"{PATH}"'}, ensure_ascii=False).encode()
    found = json.loads(ModelNames(PATH, "a:b").whole(content))
    assert found == {"model": "a:b", "text": f'"model":"{PATH}"'}


def test_a_line_is_never_held_back() -> None:
    renaming = ModelNames(PATH, "a")
    assert renaming.feed(b'data: {"content":"x"}\n\n') == b'data: {"content":"x"}\n\n'
