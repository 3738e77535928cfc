"""Put the tables of benchmarks/results/*.json into docs/numbers/*.md, docs/unknown.md and the model card.

python benchmarks/tables.py
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import few_pictures as few
import programs
import rare_classes as rare
import service_tables as served
import unknown_tables as unknown
from install_size import rows_shown as install_rows
from regret import HEADINGS, backbones, cells, summary
from regret import rows as regret_rows

from fewshot.evaluation.published import PUBLISHED, WITHOUT_LABELS, Published
from finetune.files.reading import read_json
from finetune.files.writing import write_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    for path, text in pages().items():
        write_text(path, text)


def pages() -> dict[Path, str]:
    """Every page that holds tables, with the tables of the results as they are now."""
    # Marker -> the result file, and what makes the table of it.
    tables = {
        "demo": ("demo", demo),
        "cats_dogs": ("cats_dogs", cats_dogs),
        "head_speed": ("head_speed", head_speed),
        "lake": ("omniglot", lake),
        "omniglot": ("omniglot", omniglot),
        "finetune_speed": ("finetune_speed", finetune_speed),
        "first_minutes": ("first_minutes", first_minutes),
        "transfer": ("transfer", transfer),
        "few_pictures": ("few_pictures", few_pictures),
        "programs": ("programs", whole_programs),
        "rare_classes": ("rare_classes", rare_classes),
        "recognizer": ("recognizer", recognizer),
        "families": ("families", families),
        "search": ("index_table", search),
        "embedding_speed": ("embedding_speed", embedding_speed),
        "service": ("service", service),
        "siamese_batches": ("siamese_batches", siamese_batches),
    }
    shown = {}
    for name, (file, table) in tables.items():
        path = RESULTS / f"{file}.json"
        if path.exists() and (text := table(result := read_json(path))):
            shown[name] = f"{text}\n\n{measured(result)}"
    found = {}
    for path in sorted((ROOT / "docs" / "numbers").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for name, table_text in shown.items():
            text = put(text, name, table_text)
        found[path] = text
    card = ROOT / "fewshot" / "embedding" / "weights" / "README.md"
    if (RESULTS / "omniglot.json").exists():
        result = read_json(RESULTS / "omniglot.json")
        found[card] = put(card.read_text(encoding="utf-8"), "card", shipped(result))
    if (RESULTS / "unknown.json").exists():
        result, page = read_json(RESULTS / "unknown.json"), ROOT / "docs" / "unknown.md"
        text = put(page.read_text(encoding="utf-8"), "scores", markdown(*unknown.score_rows(result)))
        text = put(text, "rates", markdown(*unknown.rate_rows(result)))
        text = put(text, "shifts", markdown(*unknown.shift_rows(result)))
        if (RESULTS / "unknown_parts.json").exists():
            text = put(text, "parts", markdown(*unknown.part_rows(read_json(RESULTS / "unknown_parts.json"))))
        found[page] = put(text, "summary", unknown.summary(result))
    if (RESULTS / "install_size.json").exists():
        result, page = read_json(RESULTS / "install_size.json"), ROOT / "docs" / "start" / "install.md"
        text = f"{markdown(*install_rows(result))}\n\n{measured(result)}"
        found[page] = put(page.read_text(encoding="utf-8"), "install_size", text)
    return found


def measured(result: dict[str, Any]) -> str:
    """The last command of a measurement, and the machine that it ran on."""
    origin = provenance_of(result)
    machine, versions = origin["machine"], origin.get("versions", {})
    when = f", {origin['date']}" if "date" in origin else ""
    torch = f"; torch {versions['torch']}" if "torch" in versions else ""
    revision = f"; revision {origin['revision']}" if origin.get("revision") else ""
    where = f"{machine['cpu']}, {machine['cores']} cores{torch}{revision}{when}"
    return f"Last measured by `{repeatable(origin['command'])}` on {where}."


def provenance_of(value: Any) -> dict[str, Any]:
    """The first part of a result that names its command and machine; {} where none does."""
    if isinstance(value, dict):
        if "command" in value and "machine" in value:
            return value
        return next((found for each in value.values() if (found := provenance_of(each))), {})
    return {}


def repeatable(command: str) -> str:
    """The command without places of the machine that it ran on."""
    return re.sub(r"(?:/tmp|\.\.)/\S+", "FOLDER", command)


def put(text: str, name: str, table: str) -> str:
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.escape(opening) + ".*?" + re.escape(closing)
    return re.sub(pattern, lambda _: f"{opening}\n{table}\n{closing}", text, flags=re.DOTALL)


def demo(result: dict[str, Any]) -> str:
    trials = result["trials"]
    rows = []
    for position, row in enumerate(result["rows"]):
        mean = statistics.mean(trial["rows"][position]["accuracy"] for trial in trials)
        rows.append((row["strategy"], with_interval(row), f"{mean:.1%}", f"{row['seconds']:.1f}"))
    tested = f"accuracy on {result['rows'][0]['n']:,} test pictures (95 % interval)"
    return markdown(("strategy", tested, f"mean of {len(trials)} seeds", "seconds"), rows)


def cats_dogs(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        name = row["strategy"] + (f" (kept: {row['kept']})" if row["kept"] != row["strategy"] else "")
        if row.get("interrupted"):
            name += f" (stopped after {row['epochs']} epochs)"
        minutes = "not kept" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"
        rows.append((name, with_interval(row["val"]), with_interval(row), minutes))
    headings = (
        "strategy",
        "val (95 % interval)",
        f"test, {result['rows'][0]['n']} pictures (95 % interval)",
        "minutes",
    )
    return markdown(headings, rows)


def head_speed(result: dict[str, Any]) -> str:
    plain, fitted = result["val_accuracy"]["plain"], result["val_accuracy"]["fit"]
    rows = [
        (
            "time over reading every picture and running the backbone once, this way",
            f"{result['fit_over_one_pass']:.2f}",
        ),
        ("time over the same by PIL, DataLoader, eager float32", f"{result['fit_over_obvious']:.2f}"),
        ("accuracy on val, scikit-learn on the features of that loop", f"{plain:.1%}"),
        ("accuracy on val, `--strategy head`", f"{fitted:.1%}"),
    ]
    return markdown(("`finetune fit cats-dogs --strategy head`", ""), rows)


# Row of benchmarks/omniglot.py -> what the table calls it.
MEASURED = {
    "background": "**contrastive embedding, nearest neighbour**",
    "background-reranked": "**contrastive embedding, the 5 nearest compared again by affine alignment**",
    "affine": "affine alignment with stroke directions, this project's",
    "hausdorff": "modified Hausdorff distance",
    "koch2015": "the network of Koch et al. 2015, trained here for so long",
    "fully-connected": "Siamese network, fully connected",
    "pixels": "nearest neighbour in pixels",
}


def lake(result: dict[str, Any]) -> str:
    """The lecture table: what was measured among what was published, best first."""
    rows = [(row.accuracy, row.name, f"{row.accuracy:.1%}", row.source) for row in PUBLISHED["lake", 20, 1]]
    for key, name in MEASURED.items():
        if key in result["rows"]:
            (found,) = [each for each in result["rows"][key]["results"] if each["protocol"] == "lake"]
            spent = trained_for(result["rows"][key])
            rows.append((found["accuracy"], name, with_interval(found, 2), "measured" + spent))
    ordered = sorted(rows, key=lambda row: -row[0])
    return markdown(("20-way one-shot, Lake's 20 runs", "accuracy", "source"), [row[1:] for row in ordered])


# Row, protocol, way, shot -> what is told of it.
OTHERS = (
    ("minimal", "lake-minimal", 20, 1),
    *(("vinyals", "vinyals", way, shot) for way, shot in ((5, 1), (5, 5), (20, 1), (20, 5))),
    ("koch", "koch", 2, 1),
    ("koch-again", "koch", 2, 1),
    ("vinyals", "all-way-423", 423, 1),
    ("background", "all-way-659", 659, 1),
    ("vinyals", "all-way-1692", 1692, 1),
    ("one-example", "vinyals", 20, 1),
)


def omniglot(result: dict[str, Any]) -> str:
    rows = []
    for key, protocol, way, shot in OTHERS:
        for found in result["rows"].get(key, {"results": []})["results"]:
            if (found["protocol"], found.get("way", 2), found.get("shot", 1)) != (protocol, way, shot):
                continue
            known: Sequence[Published] = PUBLISHED.get((protocol, way, shot), ())
            name = f"`{protocol}` {way}-way {shot}-shot" if "way" in found else f"`{protocol}` verification"
            if key == "koch-again":
                name = f"{name}, pairs compared again by affine alignment"
            if key == "one-example":
                name, known = f"{name}, learned from one picture of each character", WITHOUT_LABELS
            published = "; ".join(f"{row.name} {row.accuracy:.2%}" for row in known) or "none found"
            rows.append((name, with_interval(found, 2), published))
    return markdown(("protocol", "accuracy (95 % interval)", "published"), rows)


def finetune_speed(result: dict[str, Any]) -> str:
    fastai = result.get("fastai")
    rows = []
    for name in ("head", "partial"):
        loop = result[f"tutorial_{name}"]["accuracy"]
        for state in ("cold", "warm"):
            found = result[f"{name}_{state}"]
            over = f"{fastai['ours_as_fast'][f'{name}_{state}']:.1f}" if fastai else "not run"
            with_loop = f"{found['accuracy']:.1%} (the loop after {len(loop)}: {loop[-1]:.1%})"
            memory = f"{found['peak_memory'] / 1e9:.1f} GB"
            rows.append((f"`{name}`, {state} cache", f"{found['times_as_fast']:.1f}", over, with_loop, memory))
    epochs = result["epochs"]
    heads = (
        "",
        f"times as fast as {epochs} epochs of the tutorial's loop",
        f"as fastai's `fine_tune({epochs - 1})`",
        "accuracy on val",
        "peak memory",
    )
    rates = result["partial_cold"]["pictures_per_second"]
    steps = "; ".join(f"{step} {rate:,.0f}" for step, rate in rates.items())
    return f"{markdown(heads, rows)}\n\nPictures per second of each step, cold: {steps}."


def first_minutes(result: dict[str, Any]) -> str:
    """For each folder, what a new user waits for and gets, before and now."""
    rows = []
    for row in result["rows"]:
        for side in ("before", "now"):
            if side not in row:
                continue
            head, fit = row[side]["head"], row[side]["fit"]
            pictures = f"{row['folder']}, {row['pictures']}"
            waits = (head["seconds"], fit["first_saved_seconds"], fit["seconds"])
            accuracies = (f"{head['accuracy']:.1%}", f"{fit['accuracy']:.1%}")
            rows.append((pictures, side, *(f"{seconds:.0f} s" for seconds in waits), *accuracies))
    headings = (
        "photographs",
        "",
        "`--strategy head` in all",
        "`fit`: first classifier saved",
        "`fit` in all",
        "accuracy of the head",
        "accuracy of `fit`",
    )
    return markdown(headings, rows)


def transfer(result: dict[str, Any]) -> str:
    """What `auto` took and what it loses to the best method in hindsight, with the first backbone; a sentence for each
    backbone. Nothing is shown of a file in the layout of older versions."""
    runs = result["runs"] if result.get("layout") == 2 else []
    if not runs:
        return ""
    table = markdown(HEADINGS, regret_rows(cells(runs, backbones(runs)[0])))
    return f"{table}\n\n{summary(runs)}"


def few_pictures(result: dict[str, Any]) -> str:
    """The head against the simple classifiers, with the first backbone; a sentence for each backbone."""
    runs = result["runs"]
    names = backbones(runs)
    told = [few.summary(runs, name) for name in names]
    return "\n\n".join([markdown(few.HEADINGS, few.rows(runs, names[0])), *told])


def whole_programs(result: dict[str, Any]) -> str:
    """`finetune fit` beside fastai, with each backbone."""
    return f"{markdown(programs.HEADINGS, programs.rows(result['runs']))}\n\n{programs.summary(result['runs'])}"


def rare_classes(result: dict[str, Any]) -> str:
    """What class weights do, on each data set."""
    return markdown(rare.HEADINGS, rare.rows(result["runs"]))


def service(result: dict[str, Any]) -> str:
    """Services beside the bare model, and what they stand."""
    parts = [markdown(served.SPEED, served.speed_rows(result))] if "speed" in result else []
    parts += [markdown(served.TORTURE, served.torture_rows(result))] if "torture" in result else []
    return "\n\n".join(parts)


def siamese_batches(result: dict[str, Any]) -> str:
    """Mean accuracy over the seeds, by the size of a batch; the number of steps that the default chooses."""
    mean, steps = (
        result["mean"],
        {row["training"]: row["steps"] for row in result["rows"] if row["size"] == "as it chooses"},
    )
    sizes = list(next(iter(mean.values())))
    rows = [
        (name, f"{steps[name]:,}", *(f"{found[size]:.1%}" if size in found else "" for size in sizes))
        for name, found in mean.items()
    ]
    return markdown(("pictures", "steps as chosen", *sizes), rows)


def families(result: dict[str, Any]) -> str:
    """What ran for each family of backbones; what failed is called so."""
    strategies = list(result["rows"][0]["cells"])
    rows = []
    for row in result["rows"]:
        ran = [row["cells"][strategy]["status"] for strategy in strategies]
        converted = "yes" if row["openvino"]["status"] == "works" else row["openvino"]["status"]
        onnx = "yes" if row["onnx"]["status"] == "works" else row["onnx"]["status"]
        rows.append((row["family"], f"`{row['backbone']}`", str(len(row["stages"])), *ran, converted, onnx))
    headings = ("family", "tried with", "stages", *(f"`{strategy}`" for strategy in strategies), "OpenVINO", "ONNX")
    return markdown(headings, rows)


def recognizer(result: dict[str, Any]) -> str:
    """Means over the draws, with the standard deviation of what was accepted."""
    names = {"alphabets": "half an alphabet", "mixed": "of all alphabets", "steel-defects": "steel surfaces"}
    rows = []
    for row in result["galleries"]:
        if row["pictures"] == "tengwar":
            continue
        name = names.get(row["pictures"], row["pictures"])
        name += f", {row['enrolled']} enrolled" if row["pictures"] == "mixed" else ""
        name += f", {row['background']} background" if row.get("background") else ""
        rates = [row["rates"][asked] for asked in ("0.01", "0.05", "0.1", "0.2")]
        accepted = [f"{rate['accepted']:.1%} ± {rate['deviation']:.1%}" for rate in rates]
        right = [f"{rate['right']:.0%} ({rate['best_right']:.0%})" for rate in rates[1::2]]
        default = row["default"]
        mistakes = f"{default['right']:.0%}, {default['refused']:.0%}, {default['accepted_of_unknown']:.0%}"
        far = f"{default['accepted_of_far']:.0%}" if "accepted_of_far" in default else ""
        rows.append((name, str(row["examples"]), *accepted, *right, mistakes, far))
    headings = (
        "gallery",
        "examples",
        "1% asked",
        "5%",
        "10%",
        "20%",
        "right at 5% (best)",
        "right at 20% (best)",
        "default: right, refused, unknown accepted",
        "far accepted",
    )
    return markdown(headings, rows)


def search(result: dict[str, Any]) -> str:
    """Every engine on every gallery, as queries that set nothing find it."""
    rows, ratios = [], []
    for row in sorted(result.get("report", {}).values(), key=lambda row: (row["kind"], row["vectors"])):
        if "ratio" in row:
            shown = ", ".join(f"{ratio:.2f}" for ratio in row["ratio"].values())
            ratios.append(f"{row['vectors']:,} {row['kind']} {shown}")
        rates = [f"{rate:,.0f}" for rate in row["queries_per_second"].values()]
        name = row["engine"] + (f" (now {row['structure']})" if row["engine"] == "auto" else "")
        figures = (f"{row['recall']:.4f}", *(f"{row[key]:,.0f}" for key in ("build_seconds", "memory_mb", "disk_mb")))
        rows.append((f"{row['vectors']:,} {row['kind']}", name, *rates, *figures))
    headings = (
        "vectors",
        "engine",
        "queries/s, 1 at once",
        "100 at once",
        "1,000 at once",
        "recall",
        "seconds to build",
        "MB of memory",
        "MB of disk",
    )
    beside = "`exact` over the faster of `faiss` and `torch`, by turns in one process, 1, 100 and 1,000 queries at once"
    return f"{markdown(headings, rows)}\n\n{beside}: {'; '.join(ratios)}." if rows else ""


def embedding_speed(result: dict[str, Any]) -> str:
    speed = result["pictures_per_second"]["median"]
    names = {
        "embed": f"`Embedder.embed` ({result['runs_as']['name']})",
        "reading": "reading and decoding alone",
        "network": "the network alone, on decoded pictures",
        "float32": "`Embedder.embed`, `tolerance=1`",
        "obvious": "PIL, DataLoader, plain PyTorch",
    }
    rows = [(name, f"{speed['embed'] / speed[key]:.2f}") for key, name in names.items() if key != "embed"]
    shared = result["embed_over_parts_sharing_cores"]
    rows.insert(2, ("both, one after the other on the same cores", f"{shared:.2f}"))
    return markdown((f"pictures per second of {names['embed']}, over those of", ""), rows)


def shipped(result: dict[str, Any]) -> str:
    """Every figure of the encoder that ships."""
    rows = []
    for key in HOW:
        for found in result["rows"].get(key, {"results": []})["results"]:
            shape = f"{found['way']}-way {found['shot']}-shot" if "way" in found else "verification"
            rows.append((f"`{found['protocol']}` {shape}", HOW[key], with_interval(found, 2), found["tested"]))
    return markdown(("protocol", "by", "accuracy (95 % interval)", "tested on"), rows)


HOW = {
    "background": "nearest neighbour",
    "background-reranked": "the 5 nearest compared again by affine alignment",
}


def trained_for(row: dict[str, Any]) -> str:
    return f", {row['training']['seconds'] / 60:.0f} minutes of training" if "training" in row else ""


def with_interval(row: dict[str, Any], digits: int = 1) -> str:
    low, high = row["interval"]
    return f"{row['accuracy']:.{digits}%} ({low:.1%} to {high:.1%})"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
