"""Processes of one run: how they meet, wait for each other, and hear of what goes wrong."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import tiny
from waiting import until

from wd_plasticity.errors import UserError
from wd_plasticity.training import rendezvous


def _free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def _meet(port, num_processes, process_id, timeout=20.0, said=None):
  try:
    rendezvous.meet(f"127.0.0.1:{port}", num_processes, process_id, timeout)
    said[process_id] = "met"
  except UserError as e:
    said[process_id] = str(e)


def _all_meet(port, processes, timeout=20.0):
  """What each of several processes, (number of processes, which), makes of meeting."""
  said = {}
  threads = [threading.Thread(target=_meet, args=(port, n, i, timeout, said)) for n, i in processes]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  return said


def test_processes_meet_in_whatever_order_they_come():
  assert set(_all_meet(_free_port(), [(4, 3), (4, 1), (4, 0), (4, 2)]).values()) == {"met"}


def test_who_does_not_come_is_named():
  said = _all_meet(_free_port(), [(4, 0), (4, 2)], timeout=0.5)
  assert "2 of 4 processes did not connect within 0.5 s" in said[0]
  assert "distributed.process_id=1, 3;" in said[0]
  assert "process 2 did not reach the coordinator" in said[2]


def test_processes_that_do_not_belong_together_are_refused():
  assert "distributed.num_processes=3" in _all_meet(_free_port(), [(2, 0), (3, 1)], 0.5)[0]
  port, said = _free_port(), {}
  first = threading.Thread(target=_meet, args=(port, 3, 0, 20.0, said))
  first.start()
  others = [threading.Thread(target=_meet, args=(port, 3, 1, 0.5, {})) for _ in range(2)]
  for t in others:
    t.start()
  for t in [first, *others]:
    t.join()
  assert "two processes have distributed.process_id=1" in said[0]


def test_strangers_at_the_port_are_sent_away():
  port, said = _free_port(), {}
  first = threading.Thread(target=_meet, args=(port, 2, 0, 20.0, said))
  first.start()
  def stranger():
    try:
      with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(b"GET / HTTP/1.1\r\n\r\n")
      return True
    except ConnectionRefusedError:
      return False
  until(stranger, lambda: "nobody listens")
  _meet(port, 2, 1, 20.0, said)
  first.join()
  assert said == {0: "met", 1: "met"}


def test_another_program_at_the_port_is_one_sentence():
  with socket.socket() as s:
    s.bind(("", 0))
    s.listen()
    port = s.getsockname()[1]
    said = _all_meet(port, [(2, 0)], 0.5)
    assert f"process 0 cannot listen at port {port} (Address already in use)" in said[0]
    assert "process 1 did not reach the coordinator" in _all_meet(port, [(2, 1)], 0.5)[1]


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:x", "host:0", "host:70000", ""])
def test_an_address_without_host_or_port_is_refused(address):
  with pytest.raises(UserError, match="is not of the form host:port"):
    rendezvous.meet(address, 2, 1, 1.0)


def test_a_name_that_is_not_known_is_said():
  said = {}
  try:
    rendezvous.meet("no-such-host.invalid:1", 2, 1, 0.1)
  except UserError as e:
    said = str(e)
  assert "process 1 did not reach the coordinator no-such-host.invalid:1" in said


def test_a_run_whose_coordinator_does_not_answer_ends_with_a_sentence(tmp_path, corpus):
  config = tiny.write_config(tmp_path, corpus)
  said = tiny.run(config, tmp_path / "w",
                  f"--config.distributed.coordinator=127.0.0.1:{_free_port()}",
                  "--config.distributed.num_processes=2", "--config.distributed.process_id=1",
                  "--config.distributed.timeout_seconds=1", expect=2)
  assert said.startswith("error: process 1 did not reach") and said.count("\n") == 1
  assert not (tmp_path / "w").exists()


# With the real coordinator.

_PROCESS = """
import json, pathlib, sys, time
from wd_plasticity import errors
from wd_plasticity.config import default_config
from wd_plasticity.training import distributed
folder, port, me = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
distributed._SECONDS_BETWEEN_LINES = 0.5
def wait_for(name):
  while not (folder / name).exists():
    time.sleep(0.02)
def fail():
  raise errors.UserError("it cannot be.")
def main(_):
  section = default_config().distributed
  section.update(mode="on", coordinator=f"127.0.0.1:{port}", num_processes=3, process_id=me)
  print(distributed.initialise(section), flush=True)
  if me == 2:
    wait_for("go-2")
  distributed.barrier("the start")
  made = distributed.first_does("the data", lambda: wait_for("go-0") or 7)
  print("made", made, flush=True)
  (folder / f"made-{me}").write_text("")
  distributed.barrier("the middle")
  distributed.first_does("the members", fail)
errors.run(main)
"""


def _start_three(folder):
  """Three processes of one run, and their logs."""
  script, port = folder / "process.py", _free_port()
  script.write_text(_PROCESS)
  logs = [folder / f"{i}.log" for i in range(3)]
  return [subprocess.Popen(
      [sys.executable, str(script), str(folder), str(port), str(i)], stdout=open(logs[i], "w"),
      stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(tiny.ROOT),
                                                  "JAX_PLATFORMS": "cpu"})
          for i in range(3)], logs


def test_who_is_waited_for_is_said_and_a_failure_reaches_all(tmp_path):
  processes, logs = _start_three(tmp_path)
  said = lambda i: logs[i].read_text()
  everything = lambda: "\n".join(map(said, range(3)))
  try:
    until(lambda: "s at 'the start' for process 2 of 3" in said(0), everything)
    (tmp_path / "go-2").write_text("")
    until(lambda: "s at 'the data' for process 0 of 3" in said(1), everything)
    (tmp_path / "go-0").write_text("")
    for p in processes:
      p.wait()
  finally:
    for p in processes:
      p.kill()
      p.wait()
  assert [p.returncode for p in processes] == [2, 2, 2], everything()
  for i in range(3):
    assert "made 7" in said(i) and "Traceback" not in said(i)
    assert said(i).endswith("error: it cannot be.\n" if i == 0 else
                            "error: process 0 says: it cannot be.\n")


@pytest.mark.slow
def test_a_coordinator_that_is_stopped_is_said(tmp_path):
  (tmp_path / "go-2").write_text("")
  processes, logs = _start_three(tmp_path)
  try:
    until(lambda: "s at 'the data' for process 0 of 3" in logs[1].read_text(), logs[1].read_text)
    processes[0].send_signal(signal.SIGSTOP)
    lines = logs[1].read_text().count("s at 'the data'")
    until(lambda: logs[1].read_text().count("s at 'the data'") >= lines + 2, logs[1].read_text)
    (tmp_path / "go-0").write_text("")
    processes[0].send_signal(signal.SIGCONT)
    for p in processes:
      p.wait()
  finally:
    for p in processes:
      p.kill()
      p.wait()
  assert [p.returncode for p in processes] == [2, 2, 2]


@pytest.mark.slow
def test_a_member_in_use_is_said_by_all_processes_of_a_run(tmp_path, corpus):
  from wd_plasticity import ownership
  config, port = tiny.write_config(tmp_path, corpus), _free_port()
  workdir = tmp_path / "w"
  with ownership.hold(workdir / "members" / "wd0.1-seed0"):
    processes = [tiny.start(config, workdir, f"--config.distributed.coordinator=127.0.0.1:{port}",
                            "--config.distributed.num_processes=2",
                            f"--config.distributed.process_id={i}", "--config.mesh.data=2")
                 for i in range(2)]
    said = [p.finish(2) for p in processes]
  assert "error: member wd0.1-seed0 is in use" in said[0], said
  assert "error: process 0 says: member wd0.1-seed0 is in use" in said[1], said
