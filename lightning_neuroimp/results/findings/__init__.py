"""Find what speaks against the scores of a measurement, each finding with its evidence and a remedy.

`diagnosis.diagnose` collects them; the rules, each with its thresholds and its text, are in `samples`, `layers`,
`scores` and `removal`. `examples/findings.md` explains them to users.
"""
