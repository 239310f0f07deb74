"""What clients send is read strictly, and never guessed at."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, quote_plus, unquote_to_bytes

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.errors import (
    BadRequest,
    KVSError,
    NotFound,
    TooLarge,
    UnsupportedBody,
)
from twisted_kvs.core.settings import Settings
from twisted_kvs.core.versions import VALUE_BYTES_MAX
from twisted_kvs.web import parsing

MIB = 2**20

# Everything that UTF-8 can carry.
texts = st.text(st.characters(exclude_categories=["Cs"]))
keys = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200
).filter(lambda key: key not in parsing.RESERVED)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
).filter(lambda value: "Infinity" not in json.dumps(value))


@st.composite
def json_texts(draw: st.DrawFn) -> str:
    """Draw valid JSON, in one of several ways to write it."""
    return json.dumps(
        draw(json_values),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, "\t"])),
    )


def _json(text: str | bytes) -> parsing.Fields:
    return parsing.parse_json(text.encode() if isinstance(text, str) else text)


def _value(val: Any, bytes_max: int = MIB) -> bytes:
    return parsing.value_field(_json(json.dumps({"val": val})), bytes_max=bytes_max)


class PathTests(SynchronousTestCase):
    """From the raw path of a request to its key."""

    def assert_key(self, path: bytes, key: str) -> None:
        self.assertEqual(parsing.parse_path(b"/kv-store/" + path), key)

    def assert_refused(self, path: bytes, kind: type[KVSError] = BadRequest) -> None:
        self.assertRaises(kind, parsing.parse_path, path)

    @given(key=keys, safe=st.sampled_from(["", "/", "/.~!$&'()*+,;=:@"]))
    def test_every_key_survives_its_path(self, key: str, safe: str) -> None:
        """A key comes out of its percent-encoded path as it went in."""
        self.assert_key(quote(key, safe=safe).encode(), key)

    def test_slashes_are_characters(self) -> None:
        """Slashes, escaped or not, are neither merged nor cut off."""
        self.assert_key(b"/a", "/a")
        self.assert_key(b"a//b/", "a//b/")
        self.assert_key(b"a%2Fb%2f", "a/b/")

    def test_dots_are_characters(self) -> None:
        """Segments of dots stay where they are."""
        self.assert_key(b"a/../b/.", "a/../b/.")

    def test_decoded_once(self) -> None:
        """An escaped escape is text; a plus is a plus."""
        self.assert_key(b"%2541+b", "%41+b")

    def test_other_paths_are_not_there(self) -> None:
        """Only what is below /kv-store/ is there."""
        for path in [b"", b"/", b"*", b"/kv-store", b"//kv-store/a", b"/KV-store/a"]:
            self.assert_refused(path, NotFound)

    def test_empty_key(self) -> None:
        """A key has one character at least."""
        self.assert_refused(b"/kv-store/")

    def test_not_utf_8(self) -> None:
        """A key is UTF-8: no stray bytes, no surrogates, no overlong forms."""
        for path in [b"%ff", b"\xff", b"a%C3", b"%ED%A0%80", b"%C0%AF"]:
            self.assert_refused(b"/kv-store/" + path)

    def test_broken_escapes(self) -> None:
        """A % comes with two hexadecimal digits."""
        for path in [b"%", b"a%4", b"%zz", b"%4%41", b"100%"]:
            self.assert_refused(b"/kv-store/" + path)

    def test_control_characters(self) -> None:
        """All control characters are refused, their neighbours are not."""
        for code in [*range(0x20), *range(0x7F, 0xA0)]:
            self.assert_refused(b"/kv-store/a" + quote(chr(code)).encode())
        for code in [0x20, 0x7E, 0xA0, 0xAD, 0x2028]:
            self.assert_key(quote(chr(code)).encode(), chr(code))

    def test_length(self) -> None:
        """A key has at most 200 code points, however many bytes they take."""
        self.assert_key(quote("\U0001f511" * 200).encode(), "\U0001f511" * 200)
        self.assert_refused(b"/kv-store/" + b"a" * 201, TooLarge)

    @given(st.binary())
    def test_any_path_is_read_or_refused(self, path: bytes) -> None:
        """Whatever stands in a path, there is a key or a proper error."""
        try:
            self.assertTrue(parsing.parse_path(b"/kv-store/" + path))
        except KVSError as error:
            self.assertIn(error.status, (400, 413))


class FormTests(SynchronousTestCase):
    """Fields of forms and queries."""

    @given(st.dictionaries(texts, texts, max_size=10))
    def test_every_field_survives(self, fields: dict[str, str]) -> None:
        """All names and values come out of a form as they went in."""
        form = "&".join(f"{quote_plus(k)}={quote(v)}" for k, v in fields.items())
        if fields:
            self.assertEqual(parsing.parse_form(form.encode()), fields)

    @given(st.lists(st.binary() | st.sampled_from([b"%41", b"%0a", b"=", b"\r\n"])))
    @example([b"%3D%3d==\n", b"=41", b"=\r\n"])
    def test_decodes_like_urllib(self, parts: list[bytes]) -> None:
        """Percent-encoding means what it means everywhere."""
        text = b"".join(parts)
        try:
            decoded = parsing.percent_decoded(text)
        except BadRequest:
            self.assertIn(b"%", text)
        else:
            self.assertEqual(decoded, unquote_to_bytes(text))

    def test_plus_is_a_space(self) -> None:
        """A plus stands for a space, an escaped one for itself."""
        self.assertEqual(parsing.parse_form(b"val=a+b%2B"), {"val": "a b+"})

    def test_value_with_equal_signs(self) -> None:
        """Only the first equal sign separates name and value."""
        self.assertEqual(parsing.parse_form(b"val=a=b=="), {"val": "a=b=="})

    def test_empty_values(self) -> None:
        """A field may be empty, with an equal sign or without."""
        self.assertEqual(parsing.parse_form(b"val=&x")["val"], "")
        self.assertEqual(parsing.parse_form(b"val")["val"], "")

    def test_repeated_fields(self) -> None:
        """A field may be repeated, but not with another value."""
        self.assertEqual(parsing.parse_form(b"val=a&val=%61"), {"val": "a"})
        self.assertRaises(BadRequest, parsing.parse_form, b"val=a&val=b")
        self.assertRaises(BadRequest, parsing.parse_form, b"val=a&val=")

    def test_bad_text(self) -> None:
        """Fields are rightly escaped UTF-8."""
        for form in [b"val=%", b"val=%4", b"val=%FF", b"val=\xff", b"%ED%A0%80=1"]:
            self.assertRaises(BadRequest, parsing.parse_form, form)

    def test_number_of_fields(self) -> None:
        """There is a limit to the number of fields."""
        fields = b"&".join(b"f%d=" % i for i in range(parsing.FIELDS_MAX))
        self.assertEqual(len(parsing.parse_form(fields)), parsing.FIELDS_MAX)
        self.assertRaises(BadRequest, parsing.parse_form, fields + b"&")


class JSONTests(SynchronousTestCase):
    """Members of JSON objects."""

    def assert_refused(self, text: str | bytes) -> None:
        self.assertRaises(BadRequest, _json, text)

    @given(json_texts(), st.sampled_from(["", " ", "\r\n\t"]))
    def test_values_are_kept_as_received(self, text: str, blank: str) -> None:
        """The JSON text of a value is what was sent, to the byte."""
        fields = _json(f'{blank}{{"val":{blank}{text}{blank}, "x": 1}}{blank}')
        self.assertEqual(
            parsing.value_field(fields, bytes_max=MIB), text.strip().encode()
        )

    def test_numbers_are_kept_as_received(self) -> None:
        """Numbers that no machine can hold are kept, too."""
        for text in ["1e400", "9" * 5000, "-0.0", "1.10", "1E+2"]:
            fields = _json(f'{{"val":{text}}}')
            self.assertEqual(parsing.value_field(fields, bytes_max=MIB), text.encode())

    def test_null_is_a_value(self) -> None:
        """Null can be put; no member at all cannot."""
        self.assertEqual(_value(None), b"null")
        self.assertRaises(BadRequest, parsing.value_field, _json("{}"), bytes_max=MIB)

    def test_only_objects(self) -> None:
        """A body of JSON is an object."""
        for text in ["[]", "1", '"val"', "null", "", " ", "{", "}", "{}{}", "{} x"]:
            self.assert_refused(text)

    def test_no_json(self) -> None:
        """What is not quite JSON is refused, although Python would take some of it."""
        for text in ["NaN", "Infinity", "-Infinity", "01", "1.", ".5", "+1", "'a'"]:
            self.assert_refused(f'{{"val":{text}}}')
        for text in ["[1,]", '{"a":1,}', '"\t"', '"\\x"', '"\\u12"', "tru", '"', "//"]:
            self.assert_refused(f'{{"val":{text}}}')
        self.assert_refused("\ufeff{}")

    def test_lone_surrogates(self) -> None:
        """A surrogate without its other half is no text, escaped or not."""
        for text in [
            r"\ud800",
            r"\udc00",
            r"\ud800abcdef",
            r"\ud800\u0041",
            r"\uDC00 ",
        ]:
            self.assert_refused(f'{{"val":"{text}"}}')
            self.assert_refused(f'{{"val":[{{"{text}":1}}]}}')
            self.assert_refused(f'{{"causal_payload":"{text}"}}')
        self.assert_refused(b'{"val":"\xed\xa0\x80"}')
        self.assertEqual(len(_json(r'{"val":"\ud83d\ude00\\ud800"}')), 1)

    def test_not_utf_8(self) -> None:
        """Bytes that are no UTF-8 are refused, wherever they stand."""
        for text in [b'{"val":"\xff"}', b'{"x":["\xff"]}', b'{"\xff":1}', b"{}\xff"]:
            self.assert_refused(text)

    def test_nesting(self) -> None:
        """Values nested 100 deep are taken, 101 deep are not."""
        for opening, closing, times in [
            ("[", "]", 100),
            ('{"a":', "}", 100),
            ('["]",{"]":', "}]", 50),
        ]:
            value = opening * times + "0" + closing * times
            self.assertEqual(len(_json(f'{{"val":{value}}}')), 1)
            self.assert_refused(f'{{"val":[{value}]}}')
        self.assert_refused('{"val":' + "[" * 100_000)
        self.assert_refused('{"x":' + "[" * 101 + "]" * 101 + "}")

    def test_nesting_of_long_texts(self) -> None:
        """Depth is kept count of over any number of arrays beside each other."""
        for depth, deeper in [(50, 50), (50, 51)]:
            beside, inner = "[]," * 100_000, "[" * deeper + "]" * deeper
            text = "[" * depth + beside + inner + "]" * depth
            if depth + deeper <= parsing.JSON_DEPTH_MAX:
                self.assertEqual(len(_json(f'{{"val":{text}}}')), 1)
            else:
                self.assert_refused(f'{{"val":{text}}}')

    @given(
        st.integers(95, 105),
        st.lists(st.text('[]{}"\\\u20ac a', max_size=8), max_size=20),
        st.integers(0, 10_000),
    )
    def test_nesting_ignores_strings(
        self, depth: int, strings: list[str], siblings: int
    ) -> None:
        """Brackets within strings and beside each other do not count as nesting."""
        value: Any = [strings, *([[]] * siblings)]
        for _ in range(depth - 2):
            value = [value]
        text = json.dumps({"val": value})
        if depth <= parsing.JSON_DEPTH_MAX:
            self.assertEqual(len(_json(text)), 1)
        else:
            self.assert_refused(text)

    def test_members_named_twice(self) -> None:
        """An object that names a member twice could mean either."""
        for text in [
            '{"val":1,"val":2}',
            '{"val":12,"val":1}',
            '{"val":1,"val":12}',
            '{"val":1,"val":1}',
            '{"val":1,"v\\u0061l":2}',
            '{"causal_payload":"","x":1,"causal_payload":""}',
        ]:
            self.assert_refused(text)
        self.assertEqual(len(_json('{"val":{"val":1,"a":2},"a":"val"}')), 2)

    @given(
        st.lists(st.tuples(st.sampled_from(["a", "b", "\\u0061", "ab"]), json_texts())),
        st.sampled_from(["", " ", "\n"]),
    )
    def test_each_member_once(self, pairs: list[tuple[str, str]], blank: str) -> None:
        """Objects are taken exactly if all their members differ."""
        members = [f'{blank}"{k}"{blank}:{blank}{v}' for k, v in pairs]
        text = f"{blank}{{{f'{blank},'.join(members)}{blank}}}{blank}"
        names = {json.loads(f'"{k}"') for k, _ in pairs}
        if len(names) == len(pairs):
            self.assertEqual(set(_json(text)), names)
        else:
            self.assert_refused(text)

    def test_number_of_members(self) -> None:
        """There is a limit to the number of members."""
        many = {str(i): 0 for i in range(parsing.FIELDS_MAX)}
        self.assertEqual(len(_json(json.dumps(many))), parsing.FIELDS_MAX)
        self.assert_refused(json.dumps(many | {"one more": 0}))

    @given(st.text('[]{}",:0123456789-+.eEtruefalsn\\ \n', max_size=30))
    @example('"val":1,"val":1')
    def test_takes_what_is_json(self, inner: str) -> None:
        """What is JSON is taken, and nothing else."""

        def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
            return dict(found)

        def refuse(constant: str) -> None:
            raise ValueError(constant)

        text = f'{{"val":[{inner}]}}'
        try:
            json.loads(text, object_pairs_hook=pairs, parse_constant=refuse)
        except ValueError:
            self.assert_refused(text)
        else:
            self.assertEqual(set(_json(text)), set(json.loads(text)))


class BodyTests(SynchronousTestCase):
    """Types of bodies."""

    FORM = b"val=%7B%7D"
    JSON = b'{"val": {}}'

    def read(
        self, text: bytes, kind: bytes | None, encoding: bytes | None = None
    ) -> bytes:
        fields = parsing.parse_body(text, content_type=kind, content_encoding=encoding)
        return parsing.value_field(fields, bytes_max=MIB)

    def test_forms(self) -> None:
        """A body without a type is a form; charset and case do not matter."""
        for kind in [
            None,
            b"",
            b"application/x-www-form-urlencoded",
            b"Application/X-WWW-Form-URLEncoded",
            b"application/x-www-form-urlencoded; charset=UTF-8",
            b'application/x-www-form-urlencoded ;x=y; Charset="utf8"',
        ]:
            self.assertEqual(self.read(self.FORM, kind), b'"{}"')

    def test_json(self) -> None:
        """JSON is known by its type, and never guessed."""
        for kind in [b"application/json", b"application/JSON;charset=utf-8"]:
            self.assertEqual(self.read(self.JSON, kind), b"{}")
            self.assertRaises(BadRequest, self.read, self.FORM, kind)
        self.assertRaises(BadRequest, self.read, self.JSON, None)

    def test_other_types(self) -> None:
        """Other types, other charsets and compressed bodies are not understood."""
        for kind in [
            b"text/plain",
            b"multipart/form-data; boundary=x",
            b"application/octet-stream",
            b"application/jsonp",
            b"application/json; charset=utf-16",
            b"application/x-www-form-urlencoded; charset=latin-1",
            b";",
        ]:
            self.assertRaises(UnsupportedBody, self.read, self.FORM, kind)
        self.assertRaises(UnsupportedBody, self.read, self.FORM, None, b"gzip")
        self.assertEqual(self.read(self.FORM, None, b"identity"), b'"{}"')

    def test_empty_bodies(self) -> None:
        """An empty body has no fields, whatever it claims to be."""
        for kind in [None, b"application/json", b"text/plain"]:
            fields = parsing.parse_body(b"", content_type=kind, content_encoding=None)
            self.assertEqual(fields, {})


class ValueTests(SynchronousTestCase):
    """Values, and the limit to their size."""

    def form_value(self, text: str, bytes_max: int) -> bytes:
        return parsing.value_field({"val": text}, bytes_max=bytes_max)

    @given(texts)
    def test_strings_become_json(self, text: str) -> None:
        """A string of a form is given back as a JSON string."""
        self.assertEqual(json.loads(self.form_value(text, MIB)), text)

    @given(texts, st.booleans())
    def test_strings_count_in_utf_8(self, text: str, ascii_only: bool) -> None:
        """The limit is for a string's UTF-8, whatever its escapes take."""
        length = len(text.encode())
        members = _json(json.dumps({"val": text}, ensure_ascii=ascii_only))
        for fields in ({"val": text}, members):
            self.assertTrue(parsing.value_field(fields, bytes_max=length))
            if length:
                self.assertRaises(
                    TooLarge, parsing.value_field, fields, bytes_max=length - 1
                )

    def test_other_json_counts_as_text(self) -> None:
        """The limit is for the JSON text of anything that is no string."""
        self.assertEqual(_value([1, 2], bytes_max=6), b"[1, 2]")
        self.assertRaises(TooLarge, _value, [1, 2], bytes_max=5)

    def test_limit_of_the_protocol(self) -> None:
        """What no peer would take is refused, even within the operator's limit."""
        largest = Settings(value_bytes_max=16 * MIB).value_bytes_max
        fits = "a" * (VALUE_BYTES_MAX - 2)
        self.assertEqual(len(self.form_value(fits, largest)), VALUE_BYTES_MAX)
        self.assertRaises(TooLarge, self.form_value, fits + "a", largest)
        self.assertRaises(TooLarge, self.form_value, "\0" * (3 * MIB), largest)


class TokenTests(SynchronousTestCase):
    """The one causal payload of a request."""

    def test_fields_of_text(self) -> None:
        """A text is a string; null and nothing are the empty one."""
        fields = _json('{"a":"b\\u0041","n":null,"i":1,"o":{}}')
        self.assertEqual(parsing.text_field(fields, "a"), "bA")
        self.assertEqual(parsing.text_field(fields, "n"), "")
        self.assertEqual(parsing.text_field(fields, "nothing"), "")
        self.assertRaises(BadRequest, parsing.text_field, fields, "i")
        self.assertRaises(BadRequest, parsing.text_field, fields, "o")

    def test_one_of_several(self) -> None:
        """Empty ones do not count, equal ones count once, different ones are bad."""
        for body, others in [("t", []), ("", ["", "t"]), ("t", ["t", "", "t"])]:
            self.assertEqual(parsing.only_token(body, others, bytes_max=9), "t")
        self.assertEqual(parsing.only_token("", ["", ""], bytes_max=9), "")
        for body, others in [("t", ["u"]), ("", ["t", "u"]), ("t", ["t", "u"])]:
            self.assertRaises(BadRequest, parsing.only_token, body, others, bytes_max=9)

    def test_limit_outside_bodies(self) -> None:
        """What comes in a header or a query has a lower limit."""
        self.assertEqual(parsing.only_token("t" * 9, ["", ""], bytes_max=3), "t" * 9)
        self.assertEqual(parsing.only_token("", ["ttt"], bytes_max=3), "ttt")
        self.assertRaises(TooLarge, parsing.only_token, "", ["tttt"], bytes_max=3)
