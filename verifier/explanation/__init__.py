"""Why a query is undecided, and what to try: `explain`, the engine of `verifier explain`."""
