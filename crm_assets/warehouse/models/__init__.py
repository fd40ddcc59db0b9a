"""Purchase models: BG/NBD and MBG/NBD for when customers buy again, Gamma-Gamma for how much; fitted, judged, stored.

Belongs here: everything about the models that is Python. Not here: scoring customers, which is closed-form SQL over the stored
parameters (the dbt project), or what is done with scores.

In the order of use: `histories` (what a model sees), `likelihoods` and `formulas` (pure theory), `fitting`, `gate`, `metrics` and
`evaluation` (on a time split), `promotion` (rule and drift), `reading` and `storage` (the warehouse), `refit` (all of it once), `page`,
`cli`, `assets`.
"""
