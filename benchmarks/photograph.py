"""Plotly's page, photographed by a headless Chromium: figures of the documentation as PNG files."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import plotly.graph_objects as go


def photograph(figure: go.Figure, target: Path, chromium: str) -> None:
    """Write a figure of its layout's size as a PNG file, at one and a half times as many pixels."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        page.write_text(figure.to_html(include_plotlyjs=True, config={"displayModeBar": False}), encoding="utf-8")
        subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
                f"--window-size={figure.layout.width},{figure.layout.height}", "--force-device-scale-factor=1.5",
                "--virtual-time-budget=15000", f"--user-data-dir={folder}/profile",
                f"--screenshot={target.resolve()}", page.as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
