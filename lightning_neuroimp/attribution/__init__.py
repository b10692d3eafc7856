"""Attributions: per-sample scores of the neurons of a site, one family a file."""

from lightning_neuroimp.attribution.base import Attribution, AttributionFn, SiteBatch, resolve_attributions

__all__ = ["Attribution", "AttributionFn", "SiteBatch", "resolve_attributions"]
