"""Stage 10: the web app. ``interface`` wires, ``handlers`` do, ``static`` draws in the browser.

    browser -> guard -> interface, tabs -> handlers -> evaluation, recursive_self_improvement, ...
                            |                 |
                         charts, markup    visitors, jobs (`ssm-metarl` commands, one at a time)

The handlers know nothing of Gradio, and have no logic of their own about learning or adapting: they
call what the command line calls.
"""
