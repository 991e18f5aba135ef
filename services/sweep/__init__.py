"""Many arms at once: Ray Tune over arms, with a broker that makes what they share.

    space of a recipe → proposals (`propose`) → arms → the conductor (`conduct`) → trials of Ray Tune (`trial`)
                                                   ↘ records (`records`), by which a killed search goes on

The driver's conductor runs every step that arms share, and the evaluations; a trial waits with almost no resources and
runs one thing itself, its own last training. `choose` says which arm is best, `run` puts the phases together.
"""
