"""What calibration raises."""

from ditfastattn.errors import DitFastAttnError


class CalibrationError(DitFastAttnError):
    """Settings that cannot be calibrated, or a run that cannot be resumed."""
