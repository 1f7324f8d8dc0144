"""The figures tell a verbalizer that reads its vector from one that does not."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nnsight_nla.tiny import paths
from nnsight_nla.tiny.examples import collect
from nnsight_nla.tiny.facts import held_out_pairs
from nnsight_nla.training.measuring import measure


def test_the_shipped_pair_reads_its_vectors(tmp_path, pair):
    model, nla = pair
    held = collect(model, sorted(held_out_pairs()), documents=12, per_document=2, seed=3)
    rows = [
        {"activation_vector": vector.tolist(), "api_explanation": text, "doc_id": i // 2}
        for i, (vector, text) in enumerate(zip(held.vectors, held.explanations, strict=True))
    ]
    file = tmp_path / "held.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    tree = replace(nla.checkpoint, baseline=None).to_sidecar("av") | {"kind": "nla_dataset"}
    file.with_name("held.parquet.nla_meta.yaml").write_text(yaml.safe_dump(tree), "utf-8")
    base = measure(file, {str(paths()["av"]): nla}, held_out=1.0)
    (figures,) = base.values()
    fve, says = figures["fve"], figures["says"]
    assert figures["rows"] == 24
    assert (figures["extraction"], figures["truncated"]) == (1, 0)
    assert fve["label"] > 0.85
    assert fve["explanation"] > 0.85
    assert max(fve["null"], fve["random"], fve["shuffled"]) < 0.2
    assert figures["retrieval"] > 0.85
    assert says["explanation"] > -0.3
    assert max(says["null"], says["random"], says["shuffled"]) < says["explanation"] - 0.5
    assert figures["baseline"]["name"].startswith("block 3 in texts of")
