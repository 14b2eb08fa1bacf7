"""The page that asks for the password. Plain HTML, so that nothing else is served before somebody is signed in."""

from html import escape
from typing import Final

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sign in - relay console</title>
<style>
  body {{ font: 1.1rem/1.5 system-ui, sans-serif; display: grid; place-content: center; min-height: 90vh; }}
  form {{ display: grid; gap: .8rem; width: min(20rem, 86vw); }}
  h1 {{ font-size: 1.5rem; margin: 0; }}
  input, button {{ font: inherit; padding: .6rem .8rem; border-radius: .4rem; border: 1px solid #8894a0; }}
  button {{ background: #0b5cad; color: #fff; border-color: #0b5cad; cursor: pointer; }}
  :focus-visible {{ outline: 3px solid #e69f00; outline-offset: 2px; }}
  [role=alert] {{ border-left: .4rem solid #d55e00; padding-left: .6rem; margin: 0; }}
</style>
</head>
<body>
<form method="post" action="{action}">
  <h1>relay console</h1>
  {problem}
  <label for="password">Password</label>
  <input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
  <input name="next" type="hidden" value="{wanted}">
  <button>Sign in</button>
</form>
</body>
</html>
"""


def login_page(action: str, wanted: str, problem: str) -> str:
    """The page: where the form is sent, where to go afterwards, and what was wrong the last time."""
    shown = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    return _PAGE.format(action=escape(action), wanted=escape(wanted), problem=shown)
