"""The examples at the end of each command's help. Tests parse every one of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A command line, and what it is for."""

    what: str
    """What it does, in a few words."""
    command: str
    """What to type; a backslash at the end of a line continues it."""

    @property
    def lines(self) -> list[str]:
        """The command's lines, the second one and later ones indented."""
        first, *others = self.command.splitlines()
        return [first, *(f"    {line.strip()}" for line in others)]


ALL = (
    Example("See what it does", "nnsight-nla demo"),
    Example("Explain the last token of a text", 'nnsight-nla explain "The cow lives in the"'),
    Example(
        "Explain with your own verbalizer and reconstructor",
        'nnsight-nla explain "A text." --av AV --ar AR',
    ),
    Example("Show the options and examples of a command", "nnsight-nla explain --help"),
)
"""The examples of the application itself."""

EXAMPLES: dict[str, tuple[Example, ...]] = {
    "demo": (
        Example("A small bundled model", "nnsight-nla demo"),
        Example("A real language model", "nnsight-nla demo --model smollm2"),
        Example(
            "Every token of three sentences, and the page in a browser",
            "nnsight-nla demo --all --sentences 3 --open",
        ),
    ),
    "explain": (
        Example("The last token of a text", 'nnsight-nla explain "The cow lives in the"'),
        Example(
            "The first token, the third, and the last",
            'nnsight-nla explain "The cow lives in the" --position 0,2,-1',
        ),
        Example(
            "Three explanations of the same vector",
            'nnsight-nla explain "The cow lives in the" --samples 3 --temperature 1',
        ),
        Example(
            "Qwen3-8B and its published verbalizer, on a GPU",
            'nnsight-nla explain "A text." --model qwen3-8b',
        ),
        Example(
            "Another checkpoint from the Hub",
            'nnsight-nla explain "A text." --device-map cuda \\\n--av kitft/nla-qwen2.5-7b-L20-av',
        ),
        Example(
            "A layer that the verbalizer was not trained on",
            'nnsight-nla explain "The cow lives in the" --layer 2 --insist',
        ),
        Example(
            "Target and verbalizer on the NDIF host",
            'nnsight-nla explain "A text." --av ID --target ID --remote',
        ),
    ),
    "read": (
        Example("Every token, in a table", 'nnsight-nla read "The cow lives in the"'),
        Example(
            "A page for a layer that the verbalizer was not trained on",
            'nnsight-nla read "The cow lives in the" --layer 2 --insist --open',
        ),
        Example(
            "The same as a page, in a browser",
            'nnsight-nla read "The cow lives in the" --html cow.html --open',
        ),
        Example(
            "Every token of a model's reply in a chat",
            'nnsight-nla read "Where is Paris?" --model smollm2 --chat \\\n'
            "--generate 20 --position reply",
        ),
    ),
    "ask": (
        Example(
            "What the state before the answer knows",
            'nnsight-nla ask "People in Paris speak" --question "What is the subject?"',
        ),
        Example(
            "A choice between words, with their probabilities",
            'nnsight-nla ask "People in Paris speak" --choices Yes,No \\\n'
            '--question "Is the tone calm?"',
        ),
        Example(
            "Every token, and two questions",
            'nnsight-nla ask "People in Paris speak" --position all \\\n'
            '--question "What is the subject?" --question "What is the tone?"',
        ),
        Example(
            "Three tokens at once, at another layer",
            'nnsight-nla ask "People in Paris speak" --slots 3 --layer 4 \\\n'
            '--question "What is the language?"',
        ),
        Example(
            "A published oracle, on a GPU",
            'nnsight-nla ask "A text." --question "What is it about?" --device-map cuda \\\n'
            "--av adamkarvonen/checkpoints_latentqa_cls_past_lens_addition_Qwen3-8B",
        ),
    ),
    "info": (
        Example("A checkpoint on the Hub", "nnsight-nla info ceselder/nanonla-l24-av-qwen3-8b"),
        Example("A checkpoint in a folder", "nnsight-nla info runs/av"),
    ),
    "doctor": (
        Example(
            "Compare the settings of a checkpoint with alternatives",
            "nnsight-nla doctor runs/av --ar runs/ar",
        ),
        Example("The same on the NDIF host", "nnsight-nla doctor ID --target ID --remote"),
    ),
    "run": (
        Example(
            "Explain every tenth token of a corpus",
            "nnsight-nla run corpus.jsonl out.parquet --positions every:10 \\\n--av AV --ar AR",
        ),
        Example(
            "Explain saved vectors",
            "nnsight-nla run vectors.safetensors out.parquet --tensor residuals --av AV",
        ),
        Example(
            "Split the work between two machines: this is the first",
            "nnsight-nla run corpus.jsonl one.parquet --av AV --shard 1/2",
        ),
        Example(
            "Let a server of nnsight-nla serve generate the texts",
            "nnsight-nla run vectors.safetensors out.parquet --url http://gpu-box:8000",
        ),
    ),
    "merge": (
        Example(
            "Combine the outputs of two machines",
            "nnsight-nla merge one.parquet two.parquet out.parquet",
        ),
    ),
    "extract": (
        Example(
            "Training rows from ten random positions of each document",
            "nnsight-nla extract corpus.jsonl rows.parquet --target MODEL --layer 24",
        ),
        Example(
            "Two files, split by document",
            "nnsight-nla extract corpus.jsonl rows.parquet --target MODEL --layer 24 \\\n"
            "--splits train=0.9,test=0.1",
        ),
        Example(
            "Rows for an existing verbalizer",
            "nnsight-nla extract corpus.jsonl rows.parquet --av AV",
        ),
    ),
    "label": (
        Example(
            "With your own function, eight calls at a time",
            "nnsight-nla label rows.parquet labelled.parquet --by labels:label --workers 8",
        ),
        Example(
            "With texts from another table",
            "nnsight-nla label rows.parquet labelled.parquet --by texts.parquet",
        ),
    ),
    "train": (
        Example(
            "A verbalizer, as a LoRA adapter",
            "nnsight-nla train av labelled.parquet --base MODEL --out runs/av --lora 16",
        ),
        Example(
            "A reconstructor",
            "nnsight-nla train ar labelled.parquet --base MODEL --out runs/ar",
        ),
        Example(
            "Keep the step that reconstructs best on held-out rows",
            "nnsight-nla train av labelled.parquet --base MODEL --out runs/av \\\n"
            "--ar runs/ar --best fve",
        ),
    ),
    "view": (
        Example("A page for the small bundled model", "nnsight-nla view --open"),
        Example(
            "A real language model, beginning with a text",
            'nnsight-nla view "The Eiffel Tower is in" --model smollm2',
        ),
        Example(
            "Your own verbalizer and reconstructor, on another port",
            "nnsight-nla view --av runs/av --ar runs/ar --port 8020",
        ),
    ),
    "serve": (
        Example("Serve a verbalizer to this machine", "nnsight-nla serve runs/av"),
        Example(
            "To other machines, on four GPUs",
            "nnsight-nla serve runs/av --host 0.0.0.0 -- --tensor-parallel-size 4",
        ),
        Example("Only print the command", "nnsight-nla serve runs/av --dry-run"),
    ),
    "train rl": (
        Example(
            "Both models, on the vectors that they were trained on",
            "nnsight-nla train rl labelled.parquet --av runs/av --ar runs/ar --out runs/rl",
        ),
        Example(
            "The verbalizer alone, until it drifts; the most truthful step is kept",
            "nnsight-nla train rl labelled.parquet --av runs/av --ar runs/ar \\\n"
            "--out runs/rl --freeze-ar --stop 'kl>0.5' --best grounded_next",
        ),
        Example(
            "With a reward of your own, for texts of plain words",
            "nnsight-nla train rl labelled.parquet --av runs/av --ar runs/ar \\\n"
            "--out runs/rl --reward mine:plain=0.2",
        ),
    ),
    "evaluate": (
        Example(
            "Reconstruction, compared with controls",
            "nnsight-nla evaluate runs/av labelled.parquet --ar runs/ar",
        ),
        Example(
            "Truth, compared with the source texts",
            "nnsight-nla evaluate runs/av labelled.parquet --ar runs/ar --grounded",
        ),
        Example(
            "The same, judged by a model behind a server",
            "nnsight-nla evaluate runs/av labelled.parquet --grounded \\\n"
            "--judge http://127.0.0.1:8000/v1 --judge-model NAME",
        ),
    ),
    "calibrate": (
        Example(
            "Calibrate on held-out rows, and test on other documents",
            "nnsight-nla calibrate runs/av labelled.parquet --ar runs/ar \\\n"
            '--population "news, block 24" --test others.parquet',
        ),
    ),
}
"""The examples of each command."""
