// The address that was printed holds the token behind #, which no browser sends: put it into the form, and off.
"use strict";
const hash = location.hash.slice(1);
history.replaceState(null, "", "/");
if (hash === "wrong") {
  document.getElementById("wrong").hidden = false;
} else if (hash.startsWith("token=")) {
  document.getElementById("token").value = decodeURIComponent(hash.slice(6));
  document.forms[0].submit();
}
