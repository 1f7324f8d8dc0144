"""``nnsight-nla doctor``: compare every setting of a checkpoint with alternatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.text import Text

from . import options
from .app import command, load, out, print_json, spinner
from .tables import new_table

if TYPE_CHECKING:
    from rich.table import Table

    from ..doctor.report import Diagnosis, Finding

NOT_TRIED = "not tried"


@command()
def doctor(
    av: options.AvArgument,
    ar: options.Ar = None,
    target: options.Target = None,
    remote: options.Remote = False,
    max_new_tokens: options.MaxNewTokens = 200,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Test each setting of a checkpoint against alternatives; exit with 1 if one is wrong."""
    with spinner("comparing settings"):
        from ..core.sampling import Sampling
        from ..doctor.precheck import check
        from ..doctor.report import Diagnosis

        unusable = check(av)
        if unusable is not None:
            found = Diagnosis((unusable,), (unusable.setting,), None, False, 0)
        else:
            model, nla = load(av, None, target, dtype, device_map, remote=remote)
            sampling = Sampling(max_new_tokens=max_new_tokens)
            found = nla.doctor(model, ar=ar, sampling=sampling, remote=remote)
    if as_json:
        print_json(found.to_dict())
    else:
        if any(finding.variants for finding in found.findings):
            out.print(_diagnosis_table(found))
            for finding in found.findings:
                if finding.verdict == NOT_TRIED:
                    line = f"not tried: {finding.setting} ({finding.note})"
                    out.print(Text(line, style="dim"))
        out.print(Text(found.conclusion, style="green" if found.ok else "red"))
    if not found.ok:
        raise typer.Exit(1)


def _tried(found: Diagnosis) -> list[Finding]:
    return [finding for finding in found.findings if finding.verdict != NOT_TRIED]


def _diagnosis_table(found: Diagnosis) -> Table:
    from ..doctor.report import shown

    measured = (
        "reconstruction" if found.judge == "reconstructor" else "the likelihood of the replies"
    )
    table = new_table(
        *("setting", "value", "extraction", "effect", "AR cosine", "verdict"),
        title=f"{found.rows} activations; the verdicts are based on {measured}",
        caption="extraction: the share of well-formed explanations\n"
        "effect: what the vector adds to the reply's log-likelihood, in nats per token",
    )
    styles = {"loses": "red", "fails": "red", "supported": "green"}
    for finding in _tried(found):
        for variant in finding.variants:
            verdict = finding.verdict if variant.declared else variant.error or ""
            note = f": {finding.note}" if variant.declared and finding.note else ""
            table.add_row(
                finding.setting if variant.declared else "",
                Text(variant.value, style="bold" if variant.declared else ""),
                *map(shown, (variant.extraction, variant.effect, variant.cosine)),
                Text(verdict + note, style=styles.get(verdict, "")),
            )
    return table
