"""What the sampler took during a run, as the record that is stored with it."""

from trilithon.board.sensors.sampler import Recording
from trilithon.measure.records import SensorLog, SensorValues

__all__ = ["recording_remarks", "sensor_log"]

_DIGITS = 6  # µW, and far below what any of the others can tell


def sensor_log(recording: Recording) -> SensorLog | None:
    """None where this machine has no sensor."""
    if not recording.channels or not recording.frames:
        return None
    columns = zip(*(frame.values for frame in recording.frames), strict=True)
    sensors = tuple(
        SensorValues(
            quantity=channel.quantity,
            name=channel.name,
            unit=channel.unit,
            source=channel.source,
            values=tuple(None if value is None else round(value, _DIGITS) for value in column),
        )
        for channel, column in zip(recording.channels, columns, strict=True)
    )
    return SensorLog(at_ns=tuple(frame.at_ns for frame in recording.frames), sensors=sensors)


def recording_remarks(recording: Recording) -> tuple[str, ...]:
    return (f"sensors not read to the end: {recording.hung} did not answer",) if recording.hung else ()
