"""Replies that try to run a script, to reach another host, to leave their place or to exhaust the page."""

from __future__ import annotations

ELSEWHERE = "https://elsewhere.invalid"

# Name -> the reply. `window.hit` is what a script that runs would set.
REPLIES = {
    "script": "<script>window.hit = 1</script>",
    "split script": "<scr<script>ipt>window.hit = 1</scr</script>ipt>",
    "handlers": "<img src=x onerror='window.hit=1'><svg onload='window.hit=1'></svg><b onclick='window.hit=1'>bold</b>"
    "<details open ontoggle='window.hit=1'>d</details><body onload='window.hit=1'>",
    "script in other namespaces": "<math><mtext><table><mglyph><style><!--</style><img title='--><img src onerror="
    "window.hit=1>'></table></math><svg><script>window.hit=1</script><foreignObject><iframe srcdoc='<script>"
    "parent.hit=1</script>'></iframe></foreignObject></svg>",
    "links": "[a](javascript:window.hit=1) [b](JaVaScRiPt:window.hit=1) "
    "[c](data:text/html,<script>window.hit=1</script>) [d](&#106;avascript:window.hit=1) "
    "[e](java\nscript:window.hit=1) [f](vbscript:x) <a href='javascript:window.hit=1'>g</a> "
    "<a href=' \x01javascript:window.hit=1'>h</a> [i](file:///etc/passwd) [j](blob:x)",
    "remote pictures": f"![p]({ELSEWHERE}/a.png) <img src='{ELSEWHERE}/b.png'> <img srcset='{ELSEWHERE}/c.png 2x'> "
    f"<picture><source srcset='{ELSEWHERE}/d.png'><img></picture> "
    f"<video poster='{ELSEWHERE}/e.png' src='{ELSEWHERE}/f'></video>"
    f"<audio src='{ELSEWHERE}/g' autoplay></audio> <input type=image src='{ELSEWHERE}/h.png'> "
    f"<svg><image href='{ELSEWHERE}/i.svg'/><use href='{ELSEWHERE}/j.svg#a'/></svg> ![q](//elsewhere.invalid/k.png)",
    "own paths as pictures": "![p](/web/state) <img src='/web/conversations'> <img src=web/state>",
    "styles": f"<style>body {{ display: none; background: url({ELSEWHERE}/s.png) }}</style>"
    f"<p style='position: fixed; inset: 0; background: url({ELSEWHERE}/t.png)'>cover</p>"
    f"<link rel=stylesheet href='{ELSEWHERE}/u.css'><link rel=prefetch href='{ELSEWHERE}/v'>",
    "forms": f"<form action='{ELSEWHERE}/f' id=f><input name=q value=1>"
    f"<button formaction='{ELSEWHERE}/g'>press</button></form>"
    "<input form=f autofocus><textarea>t</textarea><select><option>o</option></select>",
    "frames": f"<iframe src='{ELSEWHERE}'></iframe><object data='{ELSEWHERE}/o'></object><embed src='{ELSEWHERE}/e'>"
    f"<frameset><frame src='{ELSEWHERE}/r'></frameset><portal src='{ELSEWHERE}/p'></portal>",
    "document": f"<base href='{ELSEWHERE}/'><meta http-equiv=refresh content='0;url={ELSEWHERE}'>"
    "<title>taken</title></body></html>",
    "clobbering": "<a id=app name=app>1</a><img name=body><a id=location href=x>2</a><form name=document>"
    "<input name=cookie><input name=getElementById></form><a id=inside>3</a><a name=querySelector>4</a>"
    "<p class='toast error'>5</p>",
    "unterminated fence": "```html\n<script>window.hit = 1</script>\n<b>code",
    "unterminated tags": "<b><i><table><tr><td>cell <div title='",
    "unterminated comment": "<!-- never closed <b>",
    "control characters": "\x1b[31mred\x1b[0m \x1b]8;;https://elsewhere.invalid\x07link\x1b]8;;\x07 "
    "\x00null \x08\x07 \ufeff \u2028 \ud7ff",
    "directions": "\u202eevil\u202c \u2066isolated\u2069 \u200f\u202bleft \u202d never closed",
    "entities": "&lt;script&gt;window.hit=1&lt;/script&gt; &#60;img src=x onerror=window.hit=1&#62;",
    "attributes of the page": "<button aria-label=Stop data-action=delete>Delete</button>"
    "<div role=alert aria-live=assertive>a</div><dialog open>d</dialog>"
    "<p hidden>h</p><p tabindex=5 accesskey=s contenteditable>t</p>",
    "autolinks": f"{ELSEWHERE}/path <{ELSEWHERE}/auto> mail@elsewhere.invalid www.elsewhere.invalid",
}

LARGE = {
    "lists in lists": "\n".join("  " * depth + f"- {depth}" for depth in range(1000)),
    "quotes in quotes": ">" * 1000 + " deep",
    "lists and quotes": "- > " * 500 + "deep",
    "brackets": "[" * 5000 + "](" * 5000,
    "stars": "*a _b " * 5000,
    "backticks": "`" * 5000 + "a" + "``" * 3000,
    "a table of 2,000 rows": "| a | b |\n|---|---|\n" + "".join(f"| {row} | **cell** |\n" for row in range(2000)),
    "one line of a megabyte": " ".join(f"word{number}" for number in range(100_000)),
    "one word of a megabyte": "".join(f"w{number}" for number in range(160_000)),
    "code of 10,000 lines": "```\n" + "".join(f"line {number}\n" for number in range(10_000)) + "```",
}
