"""The comparison: which adaptation helps, when, and by how much.

``ssm-metarl bench adaptation`` runs it, `run` is where it begins. The data flow:

    recipes     what is trained: one configuration for each model of each family
    training    the jobs that train them, each in a folder of its own, resumable
    arms        what a model scores on held-out tasks after so much data of each
    scoring     the jobs that score the models, each into a file of its own
    comparison  all files -> one table for each arm -> cells, differences, profiles
    tables      the same as Markdown
    plot        the same as pictures

Models and score files stay in the work folder: what is there is not computed again.
"""
