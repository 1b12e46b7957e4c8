import pytest

from efficientllm.data.document import Document
from efficientllm.data.sources.sotu import read_sotu
from efficientllm.data.splits import SPLITS, split_documents
from efficientllm.errors import DataError

FRACTIONS = {"validation_fraction": 0.05, "test_fraction": 0.10}


@pytest.fixture(scope="module")
def addresses():
    return read_sotu().documents


def test_every_document_is_in_exactly_one_split_and_the_shares_are_met(addresses):
    divided = split_documents(addresses, **FRACTIONS, seed=0)
    names = [document.identifier for split in SPLITS for document in divided[split]]
    assert sorted(names) == sorted(document.identifier for document in addresses)
    size = {split: sum(len(document.text) for document in divided[split]) for split in SPLITS}
    assert size["test"] / sum(size.values()) == pytest.approx(0.10, abs=0.02)
    assert size["validation"] / sum(size.values()) == pytest.approx(0.05, abs=0.02)


def test_every_era_is_in_every_split_and_no_address_in_two(addresses):
    divided = split_documents(addresses, **FRACTIONS, seed=3)
    eras = {split: {document.labels["era"] for document in divided[split]} for split in SPLITS}
    assert eras["train"] == eras["validation"] == eras["test"]
    units = [{document.unit for document in divided[split]} for split in SPLITS]
    assert not units[0] & units[1] and not units[0] & units[2] and not units[1] & units[2]
    # some years have a written and a spoken address, or this would show nothing
    assert len({document.unit for document in addresses}) < len(addresses)


def test_the_split_is_a_function_of_the_seed(addresses):
    def test_names(seed):
        return [document.identifier for document in split_documents(addresses, **FRACTIONS, seed=seed)["test"]]

    assert test_names(0) == test_names(0) != test_names(1)


def test_a_corpus_of_three_documents_fills_three_splits():
    divided = split_documents([Document(name, "text") for name in "abc"], **FRACTIONS, seed=0)
    assert [len(divided[split]) for split in SPLITS] == [1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_document_is_for_training_where_nothing_else_would_be(seed):
    documents = [Document("large", "x" * 5_000_000), *(Document(str(number), "x" * 1000) for number in range(41))]
    divided = split_documents(documents, **FRACTIONS, seed=seed)
    assert [len(divided[split]) for split in SPLITS] == [1, 14, 27]
    assert divided["train"][0].identifier == "large"
    equal = split_documents(documents[1:5], validation_fraction=0.49, test_fraction=0.49, seed=seed)
    assert [len(equal[split]) for split in SPLITS] == [1, 2, 1]


def test_a_small_stratum_goes_to_training():
    documents = [Document(str(number), "text", {"era": "x"}) for number in range(9)]
    documents += [Document("lone", "text", {"era": "y"})]
    assert "lone" in [document.identifier for document in split_documents(documents, **FRACTIONS, seed=0)["train"]]


def test_too_few_documents():
    with pytest.raises(DataError, match=r"2 documents.*at least 3"):
        split_documents([Document(name, "text") for name in "ab"], **FRACTIONS, seed=0)
