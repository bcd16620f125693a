import pytest

from volumes.errors import RequestError
from volumes.swc import parse, segment_of


def test_samples_keep_the_order_of_their_lines():
    data = (
        b"\xef\xbb\xbf# caf\xe9 in another encoding\r\n\r\n"
        b" 3 0 1.5 -2 3e3 9.0 18446744073709551615 # inline\r\n"
        b"18446744073709551615 5 0 0 0 0 -1\r\n9007199254740993 0 7 8 9 1 3"
    )
    skeleton = parse(data, 4, "4.swc")
    assert skeleton.segment_id == 4
    assert skeleton.sample.tolist() == [3, 2**64 - 1, 2**53 + 1]
    assert skeleton.position_nm.tolist() == [[1.5, -2.0, 3000.0], [0, 0, 0], [7, 8, 9]]
    assert skeleton.parent.tolist() == [1, -1, 0]


def test_a_file_may_hold_several_trees_or_none():
    data = b"1 0 0 0 0 1 -1\n2 0 0 0 0 1 1\n3 0 0 0 0 1 -1\n"
    assert parse(data, 1, "1.swc").parent.tolist() == [-1, 0, -1]
    nothing = parse(b"# only a comment\n", 1, "1.swc")
    assert nothing.position_nm.shape == (0, 3)
    assert (nothing.sample.shape, nothing.parent.shape) == ((0,), (0,))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0 1 2 3 1", "a line has 7 fields, sample type x y z radius parent, this one has 6"),
        ("2 0 1 2 3 1 1 9", "this one has 8"),
        ("2.0 0 1 2 3 1 1", "the sample number '2.0' is not an unsigned 64-bit integer"),
        ("-2 0 1 2 3 1 1", "the sample number '-2' is"),
        (f"{2**64} 0 1 2 3 1 1", f"the sample number '{2**64}' is"),
        ("2 0 1 nan 3 1 1", "the position '1 nan 3' is not three finite numbers"),
        ("2 0 1 inf 3 1 1", "the position '1 inf 3' is"),
        ("2 0 1 1_0 3 1 1", "the position '1 1_0 3' is"),
        ("2 0 1 b 3 1 1", "the position '1 b 3' is"),
        ("2 0 1 2 3 1 -2", "the parent '-2' is neither a sample number nor -1"),
        ("2 0 1 2 3 1 x", "the parent 'x' is"),
        ("2 0 1 2 3 1 5", "the parent 5 does not exist"),
        ("1 0 1 2 3 1 1", "sample 1 stands in line 2 already"),
        ("2 0 1 2 3 1 2", "the parents lead round in a circle"),
    ],
)
def test_a_bad_line_is_named(line, message):
    with pytest.raises(RequestError) as caught:
        parse(f"# comment\n1 0 0 0 0 1 -1\n{line}\n".encode(), 1, "x/1.swc")
    assert str(caught.value).startswith("x/1.swc:3: ")
    assert message in str(caught.value)


def test_a_long_circle_is_found():
    lines = [f"{i} 0 0 0 0 1 {i % 1000 + 1}" for i in range(1, 1001)]
    with pytest.raises(RequestError, match=r"1.swc:1: the parents lead round in a circle"):
        parse("\n".join(lines).encode(), 1, "1.swc")


def test_a_file_is_named_for_its_segment():
    assert segment_of(f"{2**64 - 1}.swc", "a") == 2**64 - 1
    with pytest.raises(RequestError, match=r"^a/cell.swc: an SWC file is named for its segment"):
        segment_of("cell.swc", "a/cell.swc")
