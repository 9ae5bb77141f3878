"""Open-Sora 1.1: its transformer, its checkpoints, its pipeline, and videos as files."""

from ditfastattn.opensora.checkpoint import load_stdit2
from ditfastattn.opensora.pipeline import OpenSoraPipeline, OpenSoraPipelineOutput
from ditfastattn.opensora.stdit2 import STDiT2
from ditfastattn.opensora.video import write_video

__all__ = ["OpenSoraPipeline", "OpenSoraPipelineOutput", "STDiT2", "load_stdit2", "write_video"]
