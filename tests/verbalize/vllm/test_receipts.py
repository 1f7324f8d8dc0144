"""The log of what was written: a ring that is read when somebody asks."""

import torch

from nnsight_nla.verbalize.vllm import receipts
from nnsight_nla.verbalize.vllm.receipts import Log, ReceiptWorker, merged

CPU = torch.device("cpu")


def append(log: Log, entries: list[tuple[int, int, bool]]) -> None:
    keys, positions, real = zip(*entries, strict=True)
    values = torch.tensor([[1.0 * key, 2.0 * key, 0.5] for key in keys])
    log.append(torch.tensor(keys), torch.tensor(positions), torch.tensor(real), values)


def test_every_marker_is_found_by_its_vector_and_position():
    log = Log(CPU)
    append(log, [(7, 3, True), (7, 9, True), (8, 3, False)])
    append(log, [(9, 3, True)])
    assert log.receipts([7, 8]) == {7: [(3, 7.0, 14.0, 0.5), (9, 7.0, 14.0, 0.5)]}
    assert log.receipts([9]) == {9: [(3, 9.0, 18.0, 0.5)]}
    assert log.receipts([]) == {}


def test_a_full_ring_keeps_the_latest(monkeypatch):
    monkeypatch.setattr(receipts, "_RING", 4)
    log = Log(CPU)
    for key in range(10):
        append(log, [(key, 0, True), (0, 0, False)])
    assert sorted(log.receipts(list(range(10)))) == [6, 7, 8, 9]
    append(log, [(20, 0, True)])
    assert sorted(log.receipts([6, 20])) == [6, 20]


def test_the_table_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr(receipts, "_REMEMBERED", 3)
    log = Log(CPU)
    for key in (1, 2, 3, 1, 4):
        append(log, [(key, 0, True)])
        log.receipts([])
    assert sorted(log.receipts([1, 2, 3, 4])) == [1, 3, 4]


def test_the_worker_may_have_what_nnsight_mounts_on_every_object():
    """vLLM refuses an extension with a name that a worker already has."""

    class Worker:
        pass

    import nnsight  # noqa: F401

    assert hasattr(Worker, "save")
    assert [name for name in dir(ReceiptWorker) if not name.startswith("__")] == ["nla_receipts"]


def test_answers_of_all_workers_are_one():
    first, second = [[7, [[3, 1.0, 2.0, 1.0]]]], [[7, [[9, 1.0, 3.0, 1.0]]], [8, [[3, 1, 2, 1]]]]
    assert merged([first, [], second]) == {
        7: {3: (1.0, 2.0, 1.0), 9: (1.0, 3.0, 1.0)},
        8: {3: (1, 2, 1)},
    }
