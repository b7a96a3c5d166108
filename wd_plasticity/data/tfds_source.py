"""TFDS data sets as a source of documents, without TensorFlow where that is possible.

A data set is written `NAME_OR_FOLDER:SPLIT`, several comma separated; the split is
`train` when left out and may be any TFDS split expression (`train[:10%]`). A folder
is that of one prepared version (it holds dataset_info.json). Data sets prepared as
array_record are read without TensorFlow; a name that is not prepared yet, or another
file format, needs TensorFlow.
"""

import importlib.util
import os
import re
from collections.abc import Iterator

from wd_plasticity.data import sources
from wd_plasticity.errors import UserError

_SPEC = re.compile(r"(?P<name>.+?)(:(?P<split>[A-Za-z]\w*(\[[^\]]*\])?(\+.*)?))?")


class TfdsSource:
  """The documents of one or several splits of TFDS data sets."""

  def __init__(self, spec: str, text_field: str, field: str):
    self._text_field = text_field
    self._field = field
    self.splits = []  # (builder, split)
    self.files = []
    for part in filter(None, (p.strip() for p in spec.split(","))):
      match = _SPEC.fullmatch(part)
      name, split = match["name"], match["split"] or "train"
      builder = _builder(name, field)
      self.splits.append((builder, split))
      folder = os.fspath(builder.data_path)
      self.files += [(f"{split}:{file}", os.path.join(folder, file))
                     for file in sorted(os.listdir(folder))
                     if os.path.isfile(os.path.join(folder, file))]

  def documents(self) -> Iterator[str]:
    for builder, split in self.splits:
      shown = f"{builder.info.full_name}:{split}"
      names = list(builder.info.features) if hasattr(builder.info.features, "keys") else []
      if self._text_field not in names:
        raise sources.missing_field(shown, self._text_field, names)
      for number, record in enumerate(self.records(builder, split, shown)):
        text = record[self._text_field]
        if isinstance(text, bytes):
          text = sources.decode(text, f"{shown}, record {number} (from 0)")
        if not isinstance(text, str):
          others = [name for name, value in record.items() if isinstance(value, (bytes, str))]
          raise sources.not_text(
              f"{shown}: field {self._text_field!r} holds {type(text).__name__}", others)
        yield text

  def text_bytes(self) -> int:
    return sum(os.path.getsize(path) for _, path in self.files) * 2

  def records(self, builder, split: str, shown: str) -> Iterator[dict]:
    """The records of one of `splits` as TFDS has them: nested NumPy values and bytes.

    Raises:
      UserError: there is no such split or no record in it, or its files are damaged.
    """
    try:
      expected = builder.info.splits[split].num_examples
    except (ValueError, AssertionError, KeyError) as e:
      raise UserError(f"{self._field}: {builder.info.full_name} has no split {split!r} "
                      f"({_first_line(e)}); it has {', '.join(builder.info.splits)}.") from e
    if not expected:
      raise UserError(f"{self._field}: there is no record in {shown}; name a larger split.")
    read = 0
    try:
      for record in _open(builder, split, shown):
        # Past the end of a file that is cut off, array_record reads records of nothing.
        if isinstance(record, dict) and all(value is None for value in record.values()):
          break
        read += 1
        yield record
    except UserError:
      raise
    except Exception as e:  # C++ libraries raise RuntimeError, TensorFlow errors of its own
      raise UserError(f"{shown} is broken or cut off ({_first_line(e)}); prepare it again.") from e
    if read != expected:
      raise UserError(f"{shown} is broken or cut off (it has {read} of the {expected} records that "
                      "its dataset_info.json names); prepare it again.")


def _open(builder, split: str, shown: str) -> Iterator[dict]:
  if builder.info.file_format.value == "array_record":
    source = builder.as_data_source(split)
    return (source[i] for i in range(len(source)))
  _require_tensorflow(f"{shown} is stored as {builder.info.file_format.value}")
  import tensorflow_datasets as tfds  # pylint: disable=g-import-not-at-top

  return iter(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)))


def _builder(name: str, field: str):
  import tensorflow_datasets as tfds  # pylint: disable=g-import-not-at-top

  path = os.path.expanduser(name)
  if os.path.isdir(path):
    if not os.path.isfile(os.path.join(path, "dataset_info.json")):
      raise UserError(f"{field}: {name} is not a prepared TFDS data set (no dataset_info.json); "
                      "name the folder of one version, like .../my_data/1.0.0.")
    try:
      return tfds.builder_from_directory(path)
    except Exception as e:  # of JSON, of protobuf, of TFDS: whatever its files hold
      raise UserError(f"{field}: {name} is not a prepared TFDS data set ({_first_line(e)}); "
                      "prepare it again.") from e
  if name.startswith(("/", ".", "~")):
    raise UserError(f"{field}: the folder {name} does not exist; check the path.")
  try:
    # Some definitions register themselves only when this is imported.
    import tensorflow_datasets.text  # noqa: F401  pylint: disable=g-import-not-at-top,unused-import

    builder = tfds.builder(name)
  except tfds.core.registered.DatasetNotFoundError as e:
    raise UserError(f"{field}: TFDS knows no data set {name!r}, and no such folder exists; check "
                    "the name.") from e
  except Exception as e:  # whatever the code of a data set raises
    raise UserError(f"{field}: TFDS cannot open {name!r} ({_first_line(e)}); check name, "
                    "configuration and version.") from e
  if not builder.is_prepared():
    _require_tensorflow(f"{name} is not prepared in {builder.data_path}")
    builder.download_and_prepare()
  return builder


def _first_line(e: Exception) -> str:
  return (str(e).splitlines() or [type(e).__name__])[0]


def _require_tensorflow(reason: str):
  if importlib.util.find_spec("tensorflow") is None:
    raise UserError(f"{reason}, which needs TensorFlow; install it (pip install "
                    "wd_plasticity[tensorflow]) or prepare the data set as array_record.")
