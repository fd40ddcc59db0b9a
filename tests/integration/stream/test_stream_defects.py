"""The stream's verdict on each defect the generator can be asked for is the one that is declared."""

from __future__ import annotations

from random import Random

import pytest

from crm_assets.streaming.transform import Classifier, Limits
from crm_resources.contracts import contract_for
from crm_resources.ordered_defects import Defect
from generator.defects import spoil, suits
from generator.synthetic import Shop, ShopOptions
from tests.integration.stream.lake_fixtures import Lake, records
from tests.integration.stream.messages import ARRIVED


@pytest.mark.parametrize("entity", ["event", "order", "product"])
def test_each_defect_gets_its_reason(lake: Lake, entity: str) -> None:
    shop = Shop(ShopOptions(seed=3, customers=20, products=10, orders=30, events=200, days=10), ARRIVED)
    good = [r for r in shop.history() if r.entity == entity]
    # Told by the record alone are all but the conflicting duplicate, which needs the record it contradicts.
    ordered = [d for d in Defect if d is not Defect.CONFLICTING_DUPLICATE and any(suits(r, d) for r in good)]
    assert len(ordered) >= 10
    bad = [spoil(next(r for r in good if suits(r, d)), d, Random(n)) for n, d in enumerate(ordered)]
    frame = Classifier(contract_for(entity), Limits())(lake.frame(records(entity, [r.value for r in bad])))
    verdicts = {row.kafka_offset: row.reason for row in frame.collect()}
    assert {d: verdicts[n] for n, d in enumerate(ordered)} == {d: d.reason for d in ordered}
