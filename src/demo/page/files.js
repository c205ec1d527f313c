'use strict';
document.getElementById('form').onsubmit = async event => {
  event.preventDefault();
  const file = document.getElementById('file').files[0], result = document.getElementById('result');
  if (!file) return;
  result.textContent = 'sending…';
  try {
    const answer = await fetch('/upload', { method: 'POST', body: file });
    result.textContent = JSON.stringify(await answer.json(), null, 2);
  } catch (error) { result.textContent = String(error); }
};
