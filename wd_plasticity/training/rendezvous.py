"""The processes of a run meet at the coordinator's address before JAX connects them.

JAX aborts a process, with a stack dump of C++, when the others do not come in time. Here
process 0 listens where its coordinator will; the others connect and say who they are; when
all have come they are told to go on. What goes wrong is one sentence.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator

from wd_plasticity.errors import UserError

_GREETING, _GO = b"wd_plasticity process %d of %d\n", b"go\n"
_SECONDS_BETWEEN_TRIES = 0.2


def meet(address: str, num_processes: int, process_id: int, timeout: float) -> None:
  """Returns in all processes once all are there.

  Args:
    address: host:port of process 0.
    num_processes: of the run.
    process_id: of this one, from 0.
    timeout: in seconds.

  Raises:
    UserError: the address is none, or cannot be used, or processes are missing at the timeout.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise UserError(f"distributed.coordinator={address} is not of the form host:port.")
  if num_processes == 1:
    return
  until = time.monotonic() + timeout
  if process_id == 0:
    _gather(int(port), num_processes, until, timeout)
  else:
    _join(host.strip("[]"), int(port), num_processes, process_id, until, timeout)


def is_known(address: str) -> bool:
  """Whether the host of an address can be found by its name."""
  try:
    return bool(socket.getaddrinfo(address.rpartition(":")[0], None))
  except OSError:
    return False


def _gather(port: int, num_processes: int, until: float, timeout: float) -> None:
  """Process 0 waits for the others and lets them go."""
  here: dict[int, socket.socket] = {}
  try:
    with _listen(port) as listener, contextlib.ExitStack() as stack:
      while missing := [i for i in range(1, num_processes) if i not in here]:
        listener.settimeout(max(0.0, until - time.monotonic()) or 1e-3)
        try:
          connection, _ = listener.accept()
        except TimeoutError:
          raise UserError(
              f"{len(missing)} of {num_processes} processes did not connect within {timeout} s: "
              f"distributed.process_id={', '.join(map(str, missing[:8]))}"
              f"{', ...' if len(missing) > 8 else ''}; check that they are started and reach this "
              f"machine at port {port}, or set distributed.mode=off for one process.") from None
        stack.enter_context(connection)
        connection.settimeout(10.0)
        number = _read_greeting(connection, num_processes)
        if number in here:
          raise UserError(f"two processes have distributed.process_id={number}; give each its own.")
        if number is not None:
          here[number] = connection
      listener.close()  # JAX listens there next
      for connection in here.values():
        with contextlib.suppress(OSError):
          connection.sendall(_GO)
  except OSError as e:
    raise UserError(f"process 0 cannot listen at port {port} ({_reason(e)}); give another one in "
                    "distributed.coordinator.") from e


@contextlib.contextmanager
def _listen(port: int) -> Iterator[socket.socket]:
  both = socket.has_dualstack_ipv6()
  listener = socket.create_server(("", port), backlog=1024, dualstack_ipv6=both,
                                  family=socket.AF_INET6 if both else socket.AF_INET)
  with listener:
    yield listener


def _read_greeting(connection: socket.socket, num_processes: int) -> int | None:
  """The number of the process that has connected; None for what is no process of this run.

  Raises:
    UserError: it belongs to a run of another number of processes.
  """
  try:
    words = connection.recv(64).split()
  except OSError:
    return None
  if words[:2] != _GREETING.split()[:2] or len(words) != 5:
    return None
  if int(words[4]) != num_processes:
    raise UserError(f"a process with distributed.num_processes={int(words[4])} has connected, and "
                    f"this one has {num_processes}; give all the same.")
  return int(words[2])


def _join(host: str, port: int, num_processes: int, process_id: int, until: float,
          timeout: float) -> None:
  """Another process connects, and waits to be let go."""
  why = "it did not answer"
  while (left := until - time.monotonic()) > 0:
    try:
      with socket.create_connection((host, port), timeout=left) as connection:
        connection.sendall(_GREETING % (process_id, num_processes))
        connection.settimeout(max(0.1, until - time.monotonic()))
        if connection.recv(16) == _GO:
          return
        why = "it closed the connection"
    except OSError as e:
      why = _reason(e)
    time.sleep(min(_SECONDS_BETWEEN_TRIES, left))
  raise UserError(
      f"process {process_id} did not reach the coordinator {host}:{port} within {timeout} s "
      f"({why}); check the address and that process 0 is started, or set distributed.mode=off for "
      "one process.")


def _reason(error: OSError) -> str:
  if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
    return "it did not answer"
  if isinstance(error, socket.gaierror):
    return error.strerror or "the name is not known"
  return os.strerror(error.errno) if error.errno else str(error)
