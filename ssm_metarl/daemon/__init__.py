"""Stage 9: a process that lives on its own, whatever it works at; `rsi_daemon` is its front."""
