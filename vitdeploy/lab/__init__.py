"""The lab: a page that proves and times artifacts in the browser of whatever device opens it."""
