"""Cause and remedy of messages that do not say both themselves, and of notices: lines that stop nothing."""

from __future__ import annotations

import re

# Words that begin the part of a message that says what to do, and other parts that do. Names in capitals are values
# that are themselves advice.
VERBS = (
    "add|ask|call|calibrate|check|choose|close|compact|connect|continue|copy|correct|divide|embed|enrol|extract|fetch|fit|"
    "forget|free|give|install|keep|leave|load|lower|make|merge|name|open|pick|put|quote|read|remove|run|save|set|start|take|test|"
    "train|try|upgrade|use|wait|write"
)
ADVICE = (
    "did you mean|pip install|finetune undo|finetune forget|fewshot forget|fewshot enrol|fewshot download|--resume|"
    "--overwrite|compares several|lake_runs reads|ray.init|are needed| needs | need |expected is|goes with|go with|"
    "so give|; FORM|Test on other|counted from 1|INSTEAD|ADVICE|HINT|MEANT|WAYS|FREE"
)
SAYS_WHAT_TO_DO = re.compile(
    rf"(?:[;:,] |\bor |\band |^)(?:{VERBS})\b|must (?:be|have|end|hold|not|match|name)\b|{ADVICE}"
)

# Cause and remedy, and parts of the messages that they are for, between bars. The first that fits counts.
REMEDIES: tuple[tuple[str, str], ...] = (
    (
        "The repository holds another kind of model: look at its page for the right address.",
        "holds no run of finetune",
    ),
    (
        "A file of the repository is not what the hub lists, or larger than a run's: try again, and ask its owner.",
        "at most BOUNDS go|the hub lists SIZES|the hub names IN ONE LINE|the hub states no size",
    ),
    (
        "The hub refuses, or cannot be reached: look at the reason, the address and your connection. A private or "
        "gated repository needs `hf auth login` ([hub](../../howto/use/hub.md)).",
        "cannot be DOING|cannot be pushed to",
    ),
    (
        "Metadata are what JSON has: texts, numbers, true, false, null, lists and mappings.",
        "cannot be written as JSON",
    ),
    (
        "Leave one of the two out.",
        "given twice, in|is for omniglot",
    ),
    (
        "Arguments of one call do not belong together: pass one label, one count and one key for each vector, and "
        "all characters of the split.",
        "in two groups|were not embedded; the first|were not read; the first|LEN examples do not|"
        "LEN labels do not|only an empty gallery|widths differ|key KEY is given twice",
    ),
    (
        "The run has no pictures left that it did not learn from: measure it with `fewshot benchmark`, or train again.",
        "held out no classes|was trained on, does not exist|have changed since this run",
    ),
    (
        "The files are not those that Lake et al. published, or are damaged: fetch them again with `fewshot download`.",
        "Omniglot|official|character01|not a PNG|by drawer|MD5|neither NAME.zip",
    ),
    (
        "The table comes from elsewhere and was changed by hand: do not use it, and ask its sender for another copy.",
        "to do harm|files outside of its folder",
    ),
    (
        "A file of the cache was cut short or changed: `finetune cache clear`; it is computed again.",
        "rows of another shape|rows that its name",
    ),
    (
        "The Lance table was changed by another program: copy it again, or embed its pictures into a new one.",
        "not valid; the table|: column NAME is not|vector whose length is not 1",
    ),
    (
        "Files of the index were changed, cut short or mixed: copy the whole folder again, or embed the pictures "
        "into a new `--out`.",
        "index is damaged|it is damaged|does not match NAME|index is not complete|vectors of an index|"
        "is not of an index",
    ),
    (
        "Files of two runs were mixed in one folder: copy each run again as a whole, or fit again.",
        "belong to PATH|holds no log-probabilities",
    ),
    (
        "The file was changed, cut short or mixed with another after it was written: copy the folder again from "
        "where it came from, or make it again with the command that made it.",
        "may be damaged|is damaged|not match PATH|no numbers|its header|at most MOST BYTES|at most MOST TEXT|"
        "calibration breaks|rule that",
    ),
    (
        "The weights are of another network, another version of it, or of another kind of file: give the file that "
        "belongs to the name in `--backbone` or `--model`.",
        "does not fit|holds no dictionary|ORIGIN is empty|neither safetensors|features of a grey|"
        "numbers are not finite|reads activations|is SIZE OF|reads READ|NAME is missing",
    ),
    (
        "Another version of fewtune wrote it: use that version, or make it again with this one.",
        "this version reads|this version can read",
    ),
    (
        "The path names something else: give the folder that the command before wrote (its `--out`).",
        "but not an index|holds no parts|not of fewshot embed|no index: it holds|no Lance table|not a run folder|"
        "no finished run|of an evaluation|no run's|has no run folder",
    ),
    (
        "The path is misspelt, relative to another folder, or of another kind: look with `ls`.",
        "does not exist|not a file|neither a folder nor a file|is not a folder|has no file|is a folder",
    ),
    (
        "The system refuses it, for the reason in the message: look at the owner and the rights of the path, and at "
        "the room on the disk.",
        "cannot be made|cannot be read|cannot be listed|cannot be written",
    ),
    (
        "The target is on a file system without links, or full: leave out `--link`, or free space.",
        "cannot be put into",
    ),
    (
        "Pictures were deleted, moved or overwritten while the command ran: start again when nothing changes the "
        "folder.",
        "was the folder changed",
    ),
    (
        "The picture cannot be used, for the reason in the message: save it again, or leave it out. `--max-pixels` "
        "allows larger ones ([unreadable files](../../howto/data/unreadable.md)).",
        "empty file|cut short|values that are not finite|null byte|WIDTHxHEIGHT|MOST MEMBER BYTES|shape SHAPE|"
        "not a path, bytes|picture FIRST|none of the LEN pictures|no background picture",
    ),
    (
        "The folder has no file whose name ends like a picture's: look at its sub-folders and endings.",
        "holds no pictures|no picture in FOLDER|no drawings",
    ),
    (
        "The drawing is empty, or has one colour: leave it out.",
        "has no ink",
    ),
    (
        "The table has another form than [tables](../../howto/data/tables.md) have: correct the line that the "
        "message names.",
        "has no path|has no label|is not valid CSV|two columns|neither a folder nor a table",
    ),
    (
        "A classifier needs training pictures of two classes or more, and a split that is asked for must be there: "
        "look at the names of the sub-folders.",
        "two classes with training|cannot measure|pictures in train/|fewer than two classes|has no SPLIT",
    ),
    (
        "The run has all of these pictures already, or none of the new ones can be read: look at the folder.",
        "nothing to add",
    ),
    (
        "The name is not there, or is there already; names are compared letter by letter. The message lists what "
        "there is, or `finetune history`, `fewshot info` and pictures.csv do.",
        "no class of|does not know|no picture of|not in the index|is not enrolled|no change to undo|"
        "keeps no state|nothing was enrolled|version VERSION|KEY IF THERE",
    ),
    (
        "The picture would make the test unfair, and is not added: nothing is to be done.",
        "nearly the same as one",
    ),
    (
        "A file of the run folder was deleted: copy the run again, or measure with another tool.",
        "is missing: without it",
    ),
    (
        "The name is misspelt, or of another network: `finetune probe` lists the stages, and timm's `list_models()` "
        "the networks.",
        "no stage|no weights|knows no network|names a stage",
    ),
    (
        "The network has no single tensor at this place: name another stage, or leave out `--drop-above` and "
        "`--unfreeze`.",
        "cannot be cut|leave STAGES",
    ),
    (
        "The network wants another size or number of channels: leave the option out, or take another network.",
        "takes CHANNELS|takes no pictures|does not take --image-size",
    ),
    (
        "Heat maps need convolutions: take a convolutional backbone, or go without.",
        "no feature map",
    ),
    (
        "The network has a step that the format lacks: give the other `--format` "
        "([families](../../numbers/families.md)).",
        "cannot be exported",
    ),
    (
        "The format computes otherwise than the run, so no file is written: give the other `--format`, or a larger "
        "`--tolerance` where only probabilities differ.",
        "export does not agree",
    ),
    (
        "The learning rate is too high, most often: divide `--lr` by 3 ([learning "
        "rate](../../howto/train/learning-rate.md)). The head can be used meanwhile.",
        "became VALUES|holds the head",
    ),
    (
        "`--out` holds a run on other pictures: name another folder.",
        "run on SOURCE|run on BEFORE",
    ),
    (
        "The model was trained on the characters that the protocol tests, or the two results are of different "
        "protocols: take an encoder of another split.",
        "no protocol suits|different questions|no same or no different|give no pairs|distances of shape",
    ),
    (
        "The encoder is another one than at the time of `fit`: load that one, or fit the estimator again.",
        "fingerprint",
    ),
    (
        "Look at the address, the version and the token of the cluster ([Ray](../../collections.md#on-a-ray-cluster)).",
        "Ray",
    ),
    (
        "The index is of a kind that lacks this: make one that has it ([Lance tables](../../lance.md)), or leave it "
        "out.",
        "does not record where|for engine ray",
    ),
    (
        "Two options exclude each other, or one has a value that it does not take: leave one out (`--help` lists "
        "the values).",
        "--|tolerance is|has 1 to MOST|takes a list|ASCII|which --strategy",
    ),
)

# Notices: a part of the line as it stands in the code -> cause and remedy.
NOTICES = {
    "is left out: it cannot be read": (
        "A file in `--weights-dir` has no rights for you. The other networks are compared."
    ),
    "pictures are unreadable and left out": (
        "Files are damaged or no pictures. The run goes on without them ([unreadable "
        "files](../../howto/data/unreadable.md))."
    ),
    "Identical pictures with different labels are left out": (
        "One file is in two classes, so its label is unknown: keep the right one of each pair."
    ),
    "that are identical to one in val/ or test/ are left out": (
        "A picture was copied into two splits. The measurement is right without it; nothing is to be done."
    ),
    "Classes without training pictures are left out": ("Add pictures to `train/`, or remove the empty class."),
    "Folders without pictures are left out": ("A sub-folder is empty or holds other files: look at its name."),
    "so no picture is left for validation": (
        "Every class has one picture, or its pictures are copies of one. Nothing is held out to choose "
        "between settings; only `test/` measures the run."
    ),
    "no effect with": ("The option does nothing in this run: leave it out, or choose another strategy."),
    "The splits are not recorded": (
        "The cache folder cannot be written. The run is complete, but a later one may split the pictures "
        "otherwise: set `FEWTUNE_CACHE` to a folder that can be written."
    ),
    "Activations now stay in memory": (
        "The disk of the cache is full or read-only. The run is complete; a second one computes them again."
    ),
    "rows are computed again": ("A file of the cache was damaged, and has been replaced."),
    "The network trains uncut": (
        "More than one tensor passes between its stages. Training is slower, and its result is the same."
    ),
    "The network runs in plain PyTorch, more slowly": ("OpenVINO cannot convert it. Answers are the same."),
    "training does not improve on the head": ("The head is kept: with few pictures that is the usual end."),
    "the frozen stages are slower than planned": (
        "The machine is busy. The run keeps its deadline with less training."
    ),
    "an epoch takes": ("The machine is slower than the plan. Fewer epochs are run; give more `--minutes`."),
    "keeps no features of its pictures": (
        "The run was made with `--no-keep-features`, or by an older version: its pictures are read once more."
    ),
    "Suspect labels are left out, because they need pretrained weights": (
        "Without a connection there are no weights: give `--weights` or `--weights-dir` "
        "([offline](../../howto/train/offline.md))."
    ),
    "are not in the cache; downloading": (
        "The network is fetched from the Hugging Face hub, once. Ctrl-C stops it. How to go without: "
        "[offline](../../howto/train/offline.md)."
    ),
    "pictures were left out: the run was": ("`evaluate` measures on pictures that the run has not learned from."),
    "are not recorded as CUDA graphs": ("Training is right, and slower."),
}


def remedy(message: str) -> str:
    """Cause and remedy of an error message; empty where the message says what to do itself."""
    if SAYS_WHAT_TO_DO.search(message):
        return ""
    return next((text for text, parts in REMEDIES if any(part in message for part in parts.split("|"))), "")
