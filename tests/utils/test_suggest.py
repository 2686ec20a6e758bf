"""The nearest valid choice in an error."""

from dinov2.utils.suggest import did_you_mean

CHOICES = ["vit12", "vit24", "mvhybrid"]


def test_a_near_choice_whatever_the_case():
    assert did_you_mean("MVHybird", CHOICES, listed=0) == "; did you mean 'mvhybrid'?"
    assert did_you_mean("mvhybird", ["MVHybrid"], listed=0) == "; did you mean 'MVHybrid'?"


def test_few_choices_are_listed():
    assert did_you_mean("vit13", CHOICES) == "; did you mean 'vit12'? (known: vit12, vit24, mvhybrid)"


def test_many_choices_are_listed_only_when_none_is_near():
    many = [f"choice_{i}" for i in range(20)]
    assert "known" not in did_you_mean("choice_7x", many)
    assert did_you_mean("###", many) == f" (known: {', '.join(many)})"
