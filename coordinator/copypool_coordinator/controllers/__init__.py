"""The leader's controllers: one small file each, each with one pure `plan(view, facts, now_ms, ...) -> [Action]`.

Level-triggered: a plan compares what is with what policy says and answers with the next step; it never relies on
having seen every event, and every prefix of its actions leaves a state from which the next plan goes on.
"""
