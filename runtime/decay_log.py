"""Logs the refreshes and audits of a run in its decay log and as curves; both trainers use it."""

import alphadecay
from alphadecay.audit import audit_rows
from alphadecay.decay_log import refresh_rows
from alphadecay.schedule import DecaySchedule
from runtime.run_options import RunOptions
from runtime.session import Session
from runtime.tables import say


def log_decays(decay: DecaySchedule, options: RunOptions, session: Session | None) -> None:
    """Make the session log each refresh and, with --decay_audit, an audit at each log interval.

    All ranks must call this; `session` is None on all ranks but the main process.
    """
    if session is not None:
        decay.on_refresh = lambda schedule: session.log_refresh(refresh_rows(schedule))
    if not options.decay_audit:
        return
    if session is None:
        alphadecay.DecayAudit(decay, options.log_interval, warn=lambda message: None)
    else:
        alphadecay.DecayAudit(
            decay,
            options.log_interval,
            on_audit=lambda records: session.log_audit(audit_rows(records)),
            warn=lambda message: say(f"warning: {message}"),
        )
