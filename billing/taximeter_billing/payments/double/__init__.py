"""A double of the parts of Stripe's API that Taximeter uses; see docs/stripe.md for what it proves and what it does not."""
