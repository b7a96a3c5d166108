"""A small driver of Chromium over its debugging pipe, for tests of the report's page."""

import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
  """Path of a browser, or None when there is none."""
  return next(filter(None, map(shutil.which, NAMES)), None)


def _pipe() -> list[int]:
  """Both ends of a pipe, as files that are not those the browser expects at 3 and 4."""
  ends = os.pipe()
  moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in ends]
  for fd in ends:
    os.close(fd)
  return moved


class Browser:
  """A headless browser that is closed at the end of a `with`."""

  def __init__(self, profile: Path, seconds: float = 30):
    self._seconds = seconds
    self._next = 0
    self._buffer = b""
    self.events: list[dict] = []
    # The browser reads commands from file 3 and writes answers to file 4.
    read_commands, self._write = _pipe()
    self._read, write_answers = _pipe()
    self._pid = os.posix_spawn(
        find(), ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu",
                 "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
                 "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
        os.environ, setsid=True, file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, read_commands, 3), (os.POSIX_SPAWN_DUP2, write_answers, 4)])
    os.close(read_commands)
    os.close(write_answers)

  def __enter__(self) -> "Browser":
    return self

  def __exit__(self, *_) -> None:
    try:
      os.killpg(self._pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    os.waitpid(self._pid, 0)
    os.close(self._write)
    os.close(self._read)

  def send(self, method: str, session: str | None = None, **params) -> dict:
    """Calls a method of the DevTools protocol and returns its result."""
    self._next += 1
    message = {"id": self._next, "method": method, "params": params}
    if session:
      message["sessionId"] = session
    data = json.dumps(message).encode() + b"\0"
    while data:
      data = data[os.write(self._write, data):]
    deadline = time.monotonic() + self._seconds
    while True:
      answer = self._receive(deadline)
      if answer.get("id") == self._next:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]
      self.events.append(answer)

  def _receive(self, deadline: float) -> dict:
    while b"\0" not in self._buffer:
      left = deadline - time.monotonic()
      if left <= 0 or not select.select([self._read], [], [], left)[0]:
        raise TimeoutError("the browser does not answer")
      data = os.read(self._read, 1 << 20)
      if not data:
        raise RuntimeError("the browser has ended")
      self._buffer += data
    message, self._buffer = self._buffer.split(b"\0", 1)
    return json.loads(message)

  def open(self, path: Path, **viewport) -> "Page":
    """Opens a file in a new page and waits until it is loaded."""
    return Page(self, path, **viewport)


class Page:
  """One page. Everything it says, asks and requests is kept in `browser.events`."""

  def __init__(self, browser: Browser, path: Path, width: int = 1200, height: int = 900,
               mobile: bool = False, dark: bool = False, scripts: bool = True):
    self.browser = browser
    target = browser.send("Target.createTarget", url="about:blank")["targetId"]
    self.session = browser.send("Target.attachToTarget", targetId=target,
                                flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
      self.send(f"{domain}.enable")
    self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
              deviceScaleFactor=1, mobile=mobile)
    self.prefer(dark)
    if not scripts:
      self.send("Emulation.setScriptExecutionDisabled", value=True)
    self.url = path.resolve().as_uri()
    self.send("Page.navigate", url=self.url)
    self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

  def send(self, method: str, **params) -> dict:
    return self.browser.send(method, self.session, **params)

  def prefer(self, dark: bool) -> None:
    """Emulates the preferred theme of the reader."""
    self.send("Emulation.setEmulatedMedia", features=[
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

  def evaluate(self, expression: str):
    """The value of an expression of JavaScript; promises are awaited."""
    result = self.send("Runtime.evaluate", expression=expression, returnByValue=True,
                       awaitPromise=True)
    if "exceptionDetails" in result:
      raise RuntimeError(str(result["exceptionDetails"]))
    return result["result"].get("value")

  def wait(self, condition: str, seconds: float = 15) -> None:
    """Waits until an expression is true."""
    deadline = time.monotonic() + seconds
    while not self.evaluate(condition):
      if time.monotonic() > deadline:
        raise TimeoutError(f"never true: {condition}")
      time.sleep(0.02)

  def heard(self, *methods: str) -> list[dict]:
    """Parameters of the events of this page with one of the names."""
    return [e["params"] for e in self.browser.events
            if e.get("sessionId") == self.session and e["method"] in methods]
