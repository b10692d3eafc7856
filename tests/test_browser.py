"""TensorBoard in a real browser, after a training run."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_neuroimp import AblationFaithfulness, NeuronImportance
from tests.support.lightning_modules import Classifier, loaders, trainer

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    # in continuous integration there must be a browser: the test fails there without one
    pytest.mark.skipif(
        (DRIVER is None or BROWSER is None) and not os.environ.get("CI"),
        reason="needs Chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
    ),
    pytest.mark.filterwarnings("ignore"),
]

EPOCHS = 3


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A TensorBoard server on the loopback, over the logs of a short training run."""
    folder = tmp_path_factory.mktemp("logs")
    ours = NeuronImportance("encoder.2", name="labels", faithfulness=AblationFaithfulness(max_overhead=None))
    logger = TensorBoardLogger(folder, name="run")
    trainer(folder, [ours], logger=logger, max_epochs=EPOCHS).fit(Classifier(), *loaders())
    logger.finalize("success")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: b"run" in urlopen(f"{url}/data/runs", timeout=5).read(), 90)
        yield url
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    assert DRIVER is not None
    assert BROWSER is not None
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1400,1600",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


# the text and pictures of the page, those inside shadow roots included
COLLECT = """
const texts = [], pictures = [];
(function walk(node) {
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) { if (child.textContent.trim()) texts.push(child.textContent.trim()); }
    else if (!['SCRIPT', 'STYLE', 'TEMPLATE'].includes(child.nodeName)) walk(child);
  }
  if (node.nodeName === 'IMG' && node.complete) pictures.push([node.naturalWidth, node.naturalHeight]);
})(document.body);
return [texts.join('\\n'), pictures];
"""


def wait_for(found, seconds=40):
    """Wait for an outcome that is not empty, and return it; a server that starts may refuse connections until then."""
    end, value, last = time.monotonic() + seconds, None, None
    while time.monotonic() < end:
        try:
            value = found()
        except OSError as error:
            last = error
        if value:
            return value
        time.sleep(0.3)
    raise AssertionError(f"nothing within {seconds} s; the last outcome was {value!r}, the last error {last!r}")


def opened(browser, address, tab, *phrases):
    """Open a tab, and return its text and pictures once it shows all phrases."""
    browser.get("about:blank")
    browser.get(f"{address}/#{tab}")

    def shown():
        text, pictures = browser.execute_script(COLLECT)
        return (text, pictures) if all(phrase in text for phrase in phrases) else None

    return wait_for(shown)


def test_scalars(browser, address):
    opened(browser, address, "scalars", "labels/encoder.2/gap", "labels/encoder.2/p_value", "labels/measured_epoch")


def test_histograms(browser, address):
    text, _ = opened(browser, address, "histograms", "labels/encoder.2/importance/label_0")
    assert "labels/encoder.2/importance/label_3" in text


def test_the_picture_is_drawn(browser, address):
    _, pictures = opened(browser, address, "images", "labels/encoder.2/deletion_curves", "step")
    pictures = wait_for(lambda: [size for size in browser.execute_script(COLLECT)[1] if size[0] == 800])
    assert pictures[0][1] > 800


def test_the_table_is_rendered(browser, address):
    # there are two cards, which appear one after the other
    text, _ = opened(
        browser, address, "text", "labels/summary", "labels/samples", "faithful: p(m) and p <=", "Samples nearest to"
    )
    assert re.search(r"encoder\.2, 16 neurons, blockwise_gradient: \w+", text)
    assert "encoder.2: samples that drive top neurons most" in text
    assert "accuracy left by random removal minus accuracy left by removing the top neurons" in text


def test_every_epoch_is_there(address):
    import json

    step_data = json.loads(
        urlopen(
            f"{address}/data/plugin/histograms/histograms?run=run/version_0&tag=labels/encoder.2/importance/label_0"
        ).read()
    )
    assert len(step_data) == EPOCHS
    pictures = json.loads(
        urlopen(
            f"{address}/data/plugin/images/images?run=run/version_0&tag=labels/encoder.2/deletion_curves&sample=0"
        ).read()
    )
    assert len(pictures) == EPOCHS
