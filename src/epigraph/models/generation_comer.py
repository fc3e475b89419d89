"""CoMER's search (placeholder until the search lands)."""


class CoMERGenerationMixin:
    pass
