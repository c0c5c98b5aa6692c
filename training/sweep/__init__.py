"""Tables of experiments: `stepagent sweep --config reproduction`.

A sweep is one YAML file: named parts of training configurations (methods, environments, models) and
experiments that combine them with seeds and varied options. Every combination is a run of
`training.run` in a directory named by its contents; one that two experiments share is made once.
The same command again resumes: runs that are done are skipped, unfinished ones continue. SFT is
trained once for all methods that start from the same one. At the end it writes `report.md` with
tables like the paper's table 2 and 3 and plots like its figure 4, the paper's own figures beside
ours, and `results.json` with all numbers.
"""
