#!/bin/sh
# The daemon of recursive self-improvement, from any folder; --help after an action lists its flags.
# `status` exits 0 while a daemon runs and 3 when none does.
here=$(dirname -- "$(readlink -f -- "$0")")
python="$here/.venv/bin/python"
[ -x "$python" ] || python=python3

case "${1-}" in
    start | stop | restart | status | logs | pause | resume)
        exec "$python" -m ssm_metarl.rsi_daemon "$@" ;;
    audit)
        exec "$python" -m ssm_metarl.cli rsi "$@" ;;
    *)
        echo "usage: $0 start|stop|restart|status|logs|pause|resume|audit [flags]" >&2
        exit 2 ;;
esac
