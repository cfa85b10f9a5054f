"""The source of ik_llama.cpp: what is repaired in it, by the lines that are at fault."""

from trilithon.engines.ik_llamacpp.source import IK_LLAMA_CPP

# known(source): ik-llama-cpp-python 0.1.5 examples/server/server-context.cpp: lines at the end of an answer
AT_FAULT = """\
                if (!process_token(result, slot)) {
                    // release slot because of stop condition
                    slot.cache_tokens.push_back(slot.sampled);
                    slot.n_past++;
                    send_final_response(slot);
"""
# A token that is evaluated next has to be noted.
RIGHT = """\
            common_batch_add(batch, slot.sampled, slot.cache_tokens.pos_next(), { slot.id }, true);
            slot.cache_tokens.push_back(slot.sampled);
            slot.n_past++;
        }
"""


def test_only_what_was_not_evaluated_is_not_noted() -> None:
    (path, fault, repaired), _ = IK_LLAMA_CPP.repairs
    assert path.endswith("server-context.cpp")
    assert fault.sub(repaired, RIGHT) == RIGHT
    lines = fault.sub(repaired, AT_FAULT).splitlines()
    assert lines == [AT_FAULT.splitlines()[at] for at in (0, 1, 4)]


def test_parts_of_characters_are_replaced() -> None:
    _, (path, fault, repaired) = IK_LLAMA_CPP.repairs
    assert path.endswith("server.cpp")
    # known(source): ik-llama-cpp-python 0.1.5 examples/server/server.cpp: how a whole answer is sent
    line = 'res.set_content(data.dump(), "application/json; charset=utf-8");'
    assert fault.sub(repaired, line) == 'res.set_content(safe_json_to_str(data), "application/json; charset=utf-8");'
    assert fault.sub(repaired, "res.set_content(health.dump(), MIMETYPE_JSON);").startswith("res.set_content(health")
