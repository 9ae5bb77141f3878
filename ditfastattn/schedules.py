"""The names of the samplers (``ditfastattn.samplers``), and the steps that each is usually run for."""

USUAL_STEPS = {"dpm": 50, "ddim": 50, "ddpm": 250, "iddpm": 250, "heun": 25}
