"""Who plays in the demo: five tenants of the example declarations, what each does by day, and whose agent runs away at night."""

from taximeter.workload.demo_plan import CHAT_MODEL, EMBEDDING_MODEL, LARGE_MODEL, Habit

SEED = 20261124
DAY_REQUESTS = 900
NIGHT_REQUESTS = 1_500

HABITS = (
    Habit("acme", "support-chat", CHAT_MODEL, 30, 640, 40, 60, stream=True),
    Habit("acme", "search", EMBEDDING_MODEL, 12, 0, 60, 0),
    Habit("globex", "support-chat", CHAT_MODEL, 22, 640, 30, 50),
    Habit("globex", "contract-review", LARGE_MODEL, 6, 1_600, 200, 180, stream=True),
    Habit("umbra", "triage", CHAT_MODEL, 12, 320, 80, 40),
    Habit("wonka", "triage", CHAT_MODEL, 8, 320, 60, 40),
    Habit("wonka", "lessons", LARGE_MODEL, 4, 800, 120, 120),
    Habit("initech", "agent", CHAT_MODEL, 6, 480, 60, 90),
)
RUNAWAY = Habit("initech", "agent", CHAT_MODEL, 1, 480, 60, 90)
TENANTS = ("acme", "globex", "initech", "umbra", "wonka")
