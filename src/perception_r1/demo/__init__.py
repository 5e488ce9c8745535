"""The web page: ask a policy, and its base, about a picture; see the answers drawn and what they earn. `page.serve` opens it."""
