"""A thousand traces while another thread reads texts, scores and labels."""

import threading
from collections import deque

from nnsight_nla import Sampling

PROMPTS = ("People in Paris speak", "The cow lives in the")
WHOLE = Sampling(max_new_tokens=60)  # A text with its closing tag, so that it has a label.
TRACES = 1000


def test_traces_next_to_a_thread_that_resolves(model, nla, figure):
    """Each handle keeps the text of its own vector, whoever verbalizes it and when."""
    expected = []
    for prompt in PROMPTS:
        with model.trace(prompt):
            thought = nla.explain(nla.layer(model).output[0, -1], sampling=WHOLE)
        expected.append((thought.text, thought.trust.cosine))
        assert expected[-1][1] is not None
    made: deque = deque()
    done, errors, read, most = threading.Event(), [], 0, 0

    def resolves() -> None:
        nonlocal read, most
        try:
            while made or not done.is_set():
                most = max(most, len(made))
                if made:
                    number, thought = made.popleft()
                    text, cosine = expected[number]
                    assert thought.text == text
                    if read % 20 == 0:
                        assert abs(thought.trust.cosine - cosine) < 1e-4
                    read += 1
        except BaseException as error:
            errors.append(error)

    other = threading.Thread(target=resolves)
    other.start()
    try:
        for number in range(TRACES):
            while len(made) > 200 and not errors:
                done.wait(0.001)
            with model.trace(PROMPTS[number % 2]):
                thought = nla.explain(nla.layer(model).output[0, -1], sampling=WHOLE)
            made.append((number % 2, thought))
            del thought
    finally:
        done.set()
        other.join()
    assert not errors, errors
    assert read == TRACES
    figure("traces next to a thread that reads texts and labels", TRACES, "each has its own text")


def test_threads_that_do_everything_at_once(nla, residuals, figure):
    """Explain, score, label, reconstruct and compare from four threads."""
    vectors = residuals[-4:]
    first = nla.explain(vectors)
    expected = (first.text, nla.score(first).cosine, nla.reconstruct(first.text))
    rounds, errors = 40, []

    def work() -> None:
        try:
            for _ in range(rounds):
                thought = nla.explain(vectors)
                assert thought.text == expected[0]
                assert (nla.score(thought).cosine - expected[1]).abs().max() < 1e-4
                assert (nla.reconstruct(thought.text) - expected[2]).abs().max() < 1e-3
                assert nla.compare(thought[0], thought[1]).cosine is not None
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    figure("rounds of explain, score, reconstruct and compare in 4 threads", 4 * rounds,
           "texts equal, figures within 1e-3")  # fmt: skip
