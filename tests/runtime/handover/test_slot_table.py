import asyncio

from hypothesis import given
from hypothesis import strategies as st

from trilithon.runtime.handover.slot_table import CachedTokens, SlotTable

prompts = st.lists(st.integers(0, 3), max_size=12).map(tuple)


@given(known=prompts, generated=st.integers(0, 5), prompt=prompts)
def test_what_is_cached_is_a_beginning_and_leaves_one_token(
    known: tuple[int, ...], generated: int, prompt: tuple[int, ...]
) -> None:
    cached = CachedTokens(known, generated).common(prompt)
    assert 0 <= cached <= max(0, len(prompt) - 1)
    certain = min(cached, len(known))
    assert prompt[:certain] == known[:certain]


def test_an_answer_is_cached_where_the_conversation_goes_on() -> None:
    cached = CachedTokens((1, 2, 3), generated=4)
    assert cached.common((1, 2, 3, 9, 9, 9, 9, 5, 6)) == 7
    assert cached.common((1, 2, 3, 9)) == 3
    assert cached.common((1, 2, 8, 9, 9, 9, 9, 5, 6)) == 2
    assert cached.common((1, 2, 3)) == 2


def test_a_conversation_finds_its_slot_and_a_new_one_takes_the_oldest() -> None:
    table = SlotTable(3)
    conversations = [tuple(range(start, start + 20)) for start in (100, 200, 300)]
    for tokens in conversations:
        table.choose(tokens).decoder = CachedTokens(tokens)
    numbers = [table.choose((*tokens, 7, 7)).number for tokens in (conversations[2], conversations[0])]
    assert numbers == [2, 0]
    assert table.choose((1, 2, 3)).number == 1  # the one that was used longest ago


def test_a_shared_beginning_does_not_drive_a_conversation_out() -> None:
    table = SlotTable(2)
    template = (1, 2, 3)
    long = template + tuple(range(50, 90))
    table.choose(long).decoder = CachedTokens(long)
    assert table.choose((*template, 500, 501)).number == 1


def test_a_slot_in_use_is_passed_over() -> None:
    async def scenario() -> None:
        table = SlotTable(2)
        tokens = tuple(range(20))
        first = table.choose(tokens)
        first.decoder = CachedTokens(tokens)
        async with first.lock:
            assert table.choose((*tokens, 5)).number != first.number
        assert table.choose((*tokens, 5)).number == first.number

    asyncio.run(scenario())


def test_whoever_waits_gets_the_first_slot_that_is_free() -> None:
    async def scenario() -> None:
        table = SlotTable(2)
        released = [asyncio.Event(), asyncio.Event()]

        async def hold(which: int, tokens: tuple[int, ...]) -> None:
            async with table.acquired(tokens):
                await released[which].wait()

        holding = [asyncio.create_task(hold(which, (which,) * 9)) for which in range(2)]
        await asyncio.sleep(0)
        table.slots[0].decoder = CachedTokens((7,) * 9)

        async def waits() -> int:
            async with table.acquired((7,) * 10) as slot:  # the first one would suit it better
                return slot.number

        waiting = asyncio.create_task(waits())
        await asyncio.sleep(0)
        released[1].set()
        assert await asyncio.wait_for(waiting, 60) == 1
        released[0].set()
        await asyncio.gather(*holding)

    asyncio.run(scenario())
