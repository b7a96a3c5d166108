"""The file that TensorBoard shows, written where it is called.

tensorboardX writes its files from a thread that a full disk ends; whoever then adds a value
waits for ever. Here a failure of the system is that of the call.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from wd_plasticity.files import named


class Curves:
  """Scalars of one start of a run, on disk as soon as written.

  Args:
    directory: gets a file `events.out.tfevents.*`.
    start_step: TensorBoard hides events of earlier files that come after it.

  Raises:
    OSError: the file cannot be written, here and in all methods.
  """

  def __init__(self, directory: str | os.PathLike, start_step: int):
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # slow to import
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import masked_crc32c

    self._event, self._summary, self._checksum = Event, Summary, masked_crc32c
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
    self._path = Path(directory) / name
    self._file = open(self._path, "ab")
    self._put(file_version="brain.Event:2")
    self._put(step=start_step + 1 if start_step else 0,
              session_log=SessionLog(status=SessionLog.START))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends finite values of one step."""
    if values:
      self._put(step=step, summary=self._summary(value=[
          self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]))

  def close(self) -> None:
    self._file.close()

  def _put(self, **fields) -> None:
    data = self._event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", self._checksum(x)) for x in (length, data))
    # At once: a kill can lose at most the record being written.
    with named(self._path):
      self._file.write(length + next(checksums) + data + next(checksums))
      self._file.flush()
